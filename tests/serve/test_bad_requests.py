"""What must be refused, each in OpenAI's shape, while another stream runs undisturbed."""

import json
import threading
from collections.abc import Iterator

import httpx
import pytest

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ASK = {"model": "fake-poet", "messages": [{"role": "user", "content": "秋"}]}
JSON = {"Content-Type": "application/json"}


def chat(**changes: object) -> bytes:
    return json.dumps({**ASK, **changes}).encode()


def said(*messages: object) -> bytes:
    return chat(messages=list(messages))


CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f"}}
USER = {"role": "user", "content": "?"}

BODIES = {
    "empty": b"",
    "not JSON": b"{",
    "a list": b"[]",
    "a number": b"1",
    "trailing text": chat() + b"x",
    "duplicate keys": b'{"model": "fake-poet", "model": "fake-poet", "messages": []}',
    "NaN": b'{"model": "fake-poet", "messages": [{"role": "user", "content": "?"}], "temperature": NaN}',
    "infinity": b'{"model": "fake-poet", "messages": [{"role": "user", "content": "?"}], "temperature": 1e999}',
    "lone surrogate": chat(messages=[{"role": "user", "content": "\ud800"}]),
    "NUL": chat(messages=[{"role": "user", "content": "a\0b"}]),
    "not UTF-8": b'{"model": "\xff"}',
    "100k deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "100k deep lists": b"[" * 100_000,
    "thousands of digits": b'{"model": "fake-poet", "seed": ' + b"9" * 5000 + b"}",
    "2 MB of newlines": b"\n" * (2 << 20),
    "newlines in a message": said({"role": "user", "content": "\n" * 500_000}),
    "no messages": said(),
    "unknown role": said({"role": "wizard", "content": "?"}),
    "null content": said({"role": "user", "content": None}),
    "number content": said({"role": "user", "content": 1}),
    "orphan tool result": said(USER, {"role": "tool", "tool_call_id": "a", "content": "1"}),
    "tool result of nobody": said(USER, {"role": "tool", "content": "1"}),
    "user calls a tool": said({**USER, "tool_calls": [CALL]}),
    "arguments that are no object": said(
        USER, {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "1"}}]}
    ),
    "tools the template does not know": chat(tools=[TOOL]),
    "required tool": chat(tools=[TOOL], tool_choice="required"),
    "schema": chat(response_format={"type": "json_schema"}),
    "beyond the context": said({"role": "user", "content": "長" * 200}),
    "bias outside the vocabulary": chat(logit_bias={"9999999": 1}),
    "negative bias token": chat(logit_bias={"-1": 1}),
    "bias too strong": chat(logit_bias={"1": 101}),
    "100k biases": chat(logit_bias={str(i): 1 for i in range(60_000)}),
    "empty stop": chat(stop=""),
    "empty stop in a list": chat(stop=["a", ""]),
    "10k stops": chat(stop=["a"] * 10_000),
    "long stop": chat(stop="a" * 10_000),
    "top_logprobs alone": chat(top_logprobs=3),
    "seed too large": chat(seed=2**63),
    "URL to fetch": said(
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x.png"}}]}
    ),
    **{
        f"{name} {value!r}": chat(**{name: value})
        for name in ("n", "max_tokens", "max_completion_tokens", "top_k")
        for value in (0, -1, 1e18, 10**18, "1", True, 1.5, [])
    },
    **{f"logprobs {value!r}": chat(logprobs=value) for value in (0, -1, 1e18, "1", 21)},
    **{f"temperature {value!r}": chat(temperature=value) for value in (-1, 1e18, "1", True, 2.01)},
}


@pytest.fixture(scope="module")
def undisturbed(served) -> Iterator[None]:
    """One stream that runs while everything else is refused, and must come out whole."""
    served.engine.tokens, served.engine.pause_s = 190, 0.005
    seen = list[str]()

    def read() -> None:
        with httpx.stream("POST", served.url + CHAT, json={**ASK, "stream": True}, timeout=30) as response:
            seen.extend(response.iter_lines())

    thread = threading.Thread(target=read)
    thread.start()
    yield
    thread.join(30)
    served.engine.tokens, served.engine.pause_s = 12, 0.0
    assert seen[-2] == "data: [DONE]"
    assert len([line for line in seen if '"content":"' in line and '"content":""' not in line]) == 190


@pytest.mark.parametrize("name", BODIES)
def test_a_bad_body_is_refused(served, undisturbed: None, name: str) -> None:
    response = httpx.post(served.url + CHAT, content=BODIES[name], headers=JSON)
    assert 400 <= response.status_code < 500, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 1000


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (TEXT, {"prompt": []}, "prompt"),
        (TEXT, {"prompt": ""}, "prompt"),
        (TEXT, {"prompt": [[1, -1]]}, "prompt"),
        (TEXT, {"prompt": [0x110000]}, "prompt"),
        (TEXT, {"prompt": "a", "suffix": "b"}, "suffix"),
        (TEXT, {"prompt": "a", "best_of": 3}, "best_of"),
        (TEXT, {"prompt": "a", "logprobs": True}, "logprobs"),
        (TEXT, {"prompt": "a", "logprobs": 21}, "logprobs"),
        (TEXT, {"prompt": "長" * 200}, "prompt"),
        (TEXT, {"prompt": "a", "mirostat": 2}, "mirostat"),
        ("/v1/embeddings", {"input": "a", "dimensions": 2}, "dimensions"),
        ("/v1/embeddings", {"input": ""}, "input"),
        ("/v1/embeddings", {"input": "長" * 201}, "input"),
        ("/tokenize", {}, "prompt"),
        ("/detokenize", {"tokens": ["1"]}, "tokens[0]"),
        ("/detokenize", {"tokens": [0x110000]}, "tokens"),
    ],
)
def test_a_bad_value_is_named(served, undisturbed: None, path: str, body: dict, param: str) -> None:
    response = httpx.post(served.url + path, json={"model": "fake-poet", **body})
    assert response.status_code == 400, response.text
    named = response.json()["error"]["param"]
    assert named == param or named.startswith(f"{param}.") or named.startswith(f"{param}[")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_wrong_content_type_is_refused(served, undisturbed: None, kind: str) -> None:
    response = httpx.post(served.url + CHAT, content=chat(), headers={"Content-Type": kind} if kind else {})
    assert response.status_code == 415


def test_the_last_token_of_the_context_can_be_written(served, engine) -> None:
    for length, status in ((198, 200), (199, 200), (200, 400), (201, 400)):
        body = said({"role": "user", "content": "長" * length})
        response = httpx.post(served.url + CHAT, content=body, headers=JSON)
        assert response.status_code == status
        if status == 200:
            assert response.json()["usage"]["total_tokens"] == 200
