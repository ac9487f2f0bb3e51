"""Grammars that clients send: faulty and hostile ones get 400, the others work, and a stream beside them never changes.

`tests/grammar` has more of them and looks at the messages; this is the same through the server, on the engine itself.
"""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from grammar.test_refusals import BRANCHES, deep_rules, nested
from serve.fakes import live, tiny_model

from wenfang.engine import Engine, SamplingParams
from wenfang.serve import create_app

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "秋"}]}


def schema(value: object) -> dict[str, object]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}


def regex(pattern: object) -> dict[str, object]:
    return {"type": "regex", "regex": pattern}


def lark(grammar: object) -> dict[str, object]:
    return {"type": "lark", "lark": grammar}


REFUSED = {
    "false": schema(False),
    "no schema": schema(5),
    "invalid schema": schema({"type": "text"}),
    "remote $ref": schema({"$ref": "http://127.0.0.1:1/a"}),
    "file $ref": schema({"$ref": "file:///etc/passwd"}),
    "endless $ref": schema({"$ref": "#"}),
    "unsupported keyword": schema({"type": "array", "uniqueItems": True}),
    "unsatisfiable": schema({"type": "integer", "minimum": 5, "maximum": 3}),
    "too deep oneOf": schema(nested("oneOf", 20)),
    "look-ahead": regex("(?=a)b"),
    "look-behind": regex("(?<!a)b"),
    "back-reference": regex(r"(a)\1"),
    "open group": regex("(a"),
    "no text": regex(5),
    "endless left recursion": lark('start: start "a"'),
    "undefined rule": lark('start: "x" foo'),
    "deeper than any stack": lark(deep_rules(18_000)),
    "a megabyte of rules": lark(deep_rules(60_000)),
    "no option": {"type": "choice", "choice": []},
    "nothing": {"type": "json_schema"},
    "two at once": {**regex("a"), "lark": 'start: "a"'},
    "unknown type": {"type": "ebnf", "ebnf": "a"},
}
WORKS = {
    "{}": schema({}),
    "recursive $ref": schema({"type": "object", "properties": {"c": {"$ref": "#"}}, "additionalProperties": False}),
    "10k enums": schema({"enum": [f"值{i}" for i in range(10_000)]}),
    "deep oneOf": schema(nested("oneOf", 9)),
    "nested quantifiers": regex("(a+)+$"),
    "a million repetitions": regex("a{1,1000000}"),
    "left recursion": lark('start: start "a" | "b"'),
    "5,000 rules": lark(BRANCHES),
    "5,000 rules in a row": lark(deep_rules(5000)),
}


@pytest.fixture(scope="module")
def served(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A server beside which one stream follows another, each of which must be the same."""
    engine = Engine.load(tiny_model(tmp_path_factory.mktemp("grammars") / "tiny", tokenizer_folder))
    prompt = engine.tokenizer.chat(ASK["messages"], add_generation_prompt=True)
    (expected,) = engine.generate([prompt], SamplingParams(seed=1, max_tokens=100))
    texts, over = list[str](), threading.Event()

    def read(url: str) -> None:
        body = {**ASK, "seed": 1, "max_tokens": 100, "stream": True}
        while not over.is_set():
            with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as response:
                events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
            texts.append("".join(event["choices"][0]["delta"].get("content", "") for event in events))

    with live(create_app(engine)) as url:
        thread = threading.Thread(target=read, args=(url,))
        thread.start()
        yield SimpleNamespace(url=f"{url}/v1/chat/completions")
        over.set()
        thread.join(60)
    engine.close()
    assert len(texts) > 5
    assert set(texts) == {expected.text}


@pytest.mark.parametrize("name", REFUSED)
def test_a_faulty_or_hostile_grammar_is_refused(served, name: str) -> None:
    answer = httpx.post(served.url, json={**ASK, "response_format": REFUSED[name]}, timeout=60)
    assert answer.status_code in (400, 413), answer.text
    error = answer.json()["error"]
    assert len(error["message"]) < 1000
    if name not in ("too deep oneOf", "a megabyte of rules"):  # Whose bodies are not even read.
        assert error["param"].startswith("response_format")


@pytest.mark.parametrize("stream", [False, True])
def test_a_refused_grammar_is_named_by_where_it_came_from(served, stream: bool) -> None:
    form = {"type": "json_schema", "name": "x", "schema": {"type": "text"}}
    for path, changes, param in (
        ("responses", {"text": {"format": form}}, "text.format"),
        ("completions", {"structured_outputs": {"regex": "(a"}}, "structured_outputs"),
    ):
        body = {"model": "tiny", "prompt" if path == "completions" else "input": "秋", "stream": stream, **changes}
        answer = httpx.post(served.url.replace("chat/completions", path), json=body, timeout=60)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("name", WORKS)
def test_a_heavy_grammar_is_kept(served, name: str) -> None:
    body = {**ASK, "response_format": WORKS[name], "seed": 2, "max_tokens": 12}
    answer = httpx.post(served.url, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["finish_reason"] in ("stop", "length")
