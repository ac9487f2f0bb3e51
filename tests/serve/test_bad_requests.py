"""What must be refused, each in OpenAI's shape, while another stream runs undisturbed."""

import json
from collections.abc import Iterator

import httpx
import pytest
from openai.types import completion_create_params as text_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.embedding_create_params import EmbeddingCreateParams
from openai.types.responses import response_create_params as responses_params
from serve.fakes import undisturbed

from wenfang.serve.desk import Route
from wenfang.serve.routes import ROUTES

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ASK = {"model": "fake-poet", "messages": [{"role": "user", "content": "秋"}]}
JSON = {"Content-Type": "application/json"}


def chat(**changes: object) -> bytes:
    return json.dumps({**ASK, **changes}).encode()


def said(*messages: object) -> bytes:
    return chat(messages=list(messages))


CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def called_with(arguments: str) -> bytes:
    call = {**CALL, "function": {"name": "f", "arguments": arguments}}
    return said(
        USER, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "a", "content": "1"}
    )


OLLAMA_CALL = {"function": {"name": "f", "arguments": {}}}
OLLAMA_TURN = {"role": "assistant", "tool_calls": [OLLAMA_CALL]}
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
    "arguments that are no object": called_with("1"),
    "arguments 500 deep": called_with('{"x": ' + "[" * 500 + "]" * 500 + "}"),
    "arguments with duplicate keys": called_with('{"x": 1, "x": 2}'),
    "arguments with NaN": called_with('{"x": NaN}'),
    "tools the template does not know": chat(tools=[TOOL]),
    "required tool": chat(tools=[TOOL], tool_choice="required"),
    "schema": chat(response_format={"type": "json_schema"}),
    "beyond the context": said({"role": "user", "content": "長" * 200}),
    "bias outside the vocabulary": chat(logit_bias={"9999999": 1}),
    "negative bias token": chat(logit_bias={"-1": 1}),
    "bias too strong": chat(logit_bias={"1": 101}),
    "60k biases": chat(logit_bias={str(i): 1 for i in range(60_000)}),
    "100k biases": chat(logit_bias={str(i): 1 for i in range(100_000)}),
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
    **{
        f"top_logprobs {value!r}": chat(logprobs=True, top_logprobs=value)
        for value in (-1, 1e18, 10**18, "1", True, 21, 1.5)
    },
    **{f"temperature {value!r}": chat(temperature=value) for value in (-1, 1e18, "1", True, 2.01)},
}


@pytest.fixture(scope="module", autouse=True)
def _beside_a_stream(served) -> Iterator[None]:
    with undisturbed(served.url, served.engine):
        yield


@pytest.mark.parametrize("name", BODIES)
def test_a_bad_body_is_refused(served, name: str) -> None:
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
        (TEXT, {"prompt": "a", "suffix": "b", "truncate_prompt_tokens": 1}, "truncate_prompt_tokens"),
        (TEXT, {"prompt": "a", "best_of": 3}, "best_of"),
        (TEXT, {"prompt": "a", "logprobs": True}, "logprobs"),
        (TEXT, {"prompt": "a", "logprobs": 21}, "logprobs"),
        (TEXT, {"prompt": "長" * 200}, "prompt"),
        (TEXT, {"prompt": "a", "mirostat": 2}, "mirostat"),
        ("/v1/embeddings", {"input": "a", "dimensions": 2}, "dimensions"),
        ("/v1/embeddings", {"input": ""}, "input"),
        ("/v1/embeddings", {"input": "長" * 201}, "input"),
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"messages": [USER], "add_special_tokens": False}, "add_special_tokens"),
        ("/v1/completions", {"prompt": "a", "logit_bias": {"01": 1, "1": 2}}, "logit_bias"),
        ("/api/generate", {"prompt": "a", "raw": True, "system": "b"}, "system"),
        ("/api/chat", {"messages": [{"role": "user"}]}, "messages[0].content"),
        ("/api/chat", {"messages": [USER | {"tool_name": "f"}]}, "messages[0].tool_name"),
        ("/api/chat", {"messages": [USER, {"role": "tool", "content": "1"}]}, "messages[1].tool_name"),
        ("/api/chat", {"messages": [USER | {"tool_calls": [OLLAMA_CALL]}]}, "messages[0].tool_calls"),
        (
            "/api/chat",
            {"messages": [OLLAMA_TURN, {"role": "tool", "content": "1", "tool_name": "g"}]},
            "messages[1].tool_name",
        ),
        ("/detokenize", {"tokens": ["1"]}, "tokens[0]"),
        ("/detokenize", {"tokens": [0x110000]}, "tokens"),
        *(
            (path, {**body, name: value}, name)
            for path, body, names in (
                (TEXT, {"prompt": "a"}, ("n", "max_tokens", "logprobs", "top_k", "truncate_prompt_tokens")),
                ("/v1/responses", {"input": "a"}, ("max_output_tokens", "top_k")),
                ("/v1/embeddings", {"input": "a"}, ("truncate_prompt_tokens",)),
            )
            for name in names
            for value in (0, -1, 1e18, 10**18, "1", True)
            if (name, value) != ("logprobs", 0) or value is True
        ),
        *(
            ("/api/chat", {"messages": [USER], "options": {name: value}}, "options")
            for name in ("num_predict", "top_k")
            for value in (0, -1, 1e18, 10**18, "1", True)
        ),
    ],
)
def test_a_bad_value_is_named(served, path: str, body: dict, param: str) -> None:
    response = httpx.post(served.url + path, json={"model": "fake-poet", **body})
    assert response.status_code == 400, response.text
    named = response.json()["error"]["param"]
    assert named == param or named.startswith(f"{param}.") or named.startswith(f"{param}[")


@pytest.mark.parametrize(
    ("path", "body", "param", "said"),
    [
        (TEXT, {"prompt": 5}, "prompt", "a valid string / Input should be a valid list"),
        (TEXT, {"prompt": [[1, -1]]}, "prompt[0][1]", "greater than or equal to 0"),
        (TEXT, {"prompt": ["a", 1]}, "prompt[1]", "a valid string"),
        (TEXT, {"prompt": [True] * 100_000}, "prompt[0]", "a valid integer"),
        ("/v1/embeddings", {"input": 5}, "input", "a valid string"),
        ("/v1/responses", {"input": 5}, "input", "a valid string / Input should be a valid list"),
        ("/v1/responses", {"input": [{**USER, "role": "wizard"}]}, "input[0].role", "'system'"),
        ("/v1/responses", {"input": [{**USER, "mood": 1}]}, "input[0].mood", "Unsupported"),
        ("/v1/responses", {"input": "a", "text": {"format": {"type": "json_schema"}}}, "text.format.name", "Missing"),
        (CHAT, {**ASK, "tool_choice": 5}, "tool_choice", "'required' / Input should be a valid dictionary"),
        (CHAT, {**ASK, "tool_choice": {"type": "function"}}, "tool_choice.function", "Missing"),
        (CHAT, {**ASK, "stop": ""}, "stop", "at least 1"),
        (CHAT, {**ASK, "logit_bias": {"-1": 1}}, "logit_bias.-1", "match pattern"),
    ],
)
def test_a_refusal_names_a_place_in_the_request(served, path: str, body: dict, param: str, said: str) -> None:
    error = httpx.post(served.url + path, json={"model": "fake-poet", **body}).json()["error"]
    assert error["param"] == param
    assert said in error["message"]
    assert "instance of" not in error["message"]


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_a_query_parameter_is_refused_by_name(served, route: Route) -> None:
    """Pages and figures are asked for with anything; where a parameter could be meant, none is ignored."""
    url = served.url + route.path.replace("{model:path}", "fake-poet")
    for query, name in (("temperature=0", "temperature"), ("limit=", "limit"), ("=1", "")):
        answer = httpx.request(route.method, f"{url}?{query}", json=ASK if route.asks else None)
        if route.path in ("/health", "/metrics", "/docs", "/openapi.json"):
            assert answer.status_code == 200
            continue
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == name
        assert f"query parameter: {name!r}" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("headers", "status", "said"),
    [
        ({"Content-Encoding": "gzip"}, 415, "Content-Encoding is 'gzip'"),
        ({"Content-Encoding": "Identity"}, 200, ""),
        ({"Content-Type": "application/json; charset=big5"}, 415, "'charset=big5'; it must be 'charset=utf-8'"),
        ({"Content-Type": 'Application/JSON; Charset="UTF-8"'}, 200, ""),
    ],
)
def test_a_body_in_another_encoding_is_refused(served, headers: dict[str, str], status: int, said: str) -> None:
    answer = httpx.post(served.url + CHAT, content=chat(max_tokens=1), headers=JSON | headers)
    assert answer.status_code == status
    if said:
        assert answer.json()["error"]["code"] == "unsupported_media_type"
        assert said in answer.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_wrong_content_type_is_refused(served, kind: str) -> None:
    response = httpx.post(served.url + CHAT, content=chat(), headers={"Content-Type": kind} if kind else {})
    assert response.status_code == 415


def test_the_last_token_of_the_context_can_be_written(served) -> None:
    for length, status in ((198, 200), (199, 200), (200, 400), (201, 400)):
        body = said({"role": "user", "content": "長" * length})
        response = httpx.post(served.url + CHAT, content=body, headers=JSON)
        assert response.status_code == status
        if status == 200:
            assert response.json()["usage"]["total_tokens"] == 200


@pytest.mark.parametrize("path", [route.path for route in ROUTES if route.asks is not None])
def test_every_route_refuses_what_is_no_request(served, path: str) -> None:
    for name in ("empty", "not JSON", "a list", "duplicate keys", "NaN", "lone surrogate", "NUL", "100k deep",
                 "2 MB of newlines", "thousands of digits"):  # fmt: skip
        response = httpx.post(served.url + path, content=BODIES[name], headers=JSON)
        assert 400 <= response.status_code < 500, (name, response.text)
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert httpx.post(served.url + path, content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415


PARAMETERS = {
    CHAT: (chat_params.CompletionCreateParamsBase, ASK),
    TEXT: (text_params.CompletionCreateParamsBase, {"model": "fake-poet", "prompt": "秋"}),
    "/v1/embeddings": (EmbeddingCreateParams, {"model": "fake-poet", "input": "秋"}),
    "/v1/responses": (responses_params.ResponseCreateParamsBase, {"model": "fake-poet", "input": "秋"}),
}


@pytest.mark.parametrize(
    ("path", "name"),
    [(path, name) for path, (known, _) in PARAMETERS.items() for name in known.__annotations__],
)
def test_no_parameter_of_the_official_client_is_ignored(served, path: str, name: str) -> None:
    """Each is one that we read, and then a value of no type is refused by its name, or refused whatever it is."""
    _, body = PARAMETERS[path]
    for nonsense in ({"no": ["such", "value"]}, "no such value"):
        response = httpx.post(served.url + path, json={**body, name: nonsense})
        if response.status_code == 200:
            assert name in ("user", "input", "prompt", "stop", "suffix", "instructions")  # A text is what they are.
            continue
        error = response.json()["error"]
        assert response.status_code in (400, 404)
        assert error["param"].startswith(name)
