"""`wenfang chat` beyond question and answer: many lines, words with a slash, a server's address."""

import io
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import jsonschema
import pytest
from serve.fakes import FakeEngine, live

from wenfang.cli import main
from wenfang.cli.chat import CUT, chat
from wenfang.cli.orders import Conversation
from wenfang.cli.talker import Server
from wenfang.engine import Engine
from wenfang.grammar import JsonSchema
from wenfang.serve import create_app, load_keys, new_key
from wenfang.serve.callers import Allowance
from wenfang.serve.forms import ResponseFormat


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """`Engine.load` gives an engine that tells what it was asked."""
    engine = FakeEngine()
    engine.close, engine.asked = lambda: None, []
    write = engine.write

    def watched(prompt, params):
        engine.asked.append(("".join(map(chr, prompt)), params))
        return write(prompt, params)

    engine.write = watched
    monkeypatch.setattr(Engine, "load", lambda folder, **options: engine)
    return engine


def type_in(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_lines_that_go_on_and_blocks_are_one_question(
    scripted: FakeEngine, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, '秋\\\n夜\n"""\n第一行\n\n第二行\n"""\n完\n')
    chat(model)
    assert [prompt for prompt, _ in scripted.asked] == ["秋\n夜", "第一行\n\n第二行", "完"]


@pytest.mark.parametrize("text", ['"""\n秋\n', "秋\\"])
def test_the_end_of_the_input_ends_what_goes_on(
    scripted: FakeEngine, model: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    type_in(monkeypatch, text)
    chat(model)
    assert [prompt for prompt, _ in scripted.asked] == ["秋"]


def test_words_with_a_slash_change_what_follows(
    scripted: FakeEngine, model: Path, monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path
) -> None:
    saved = tmp_path / "talk.jsonl"
    type_in(
        monkeypatch,
        f"/system 你是詩人\n/temp 0.3\n秋\n/remember\n夜\n/save {saved}\n/history\n/clear\n月\n/temp 9\n/tmp 1\n完\n",
    )
    chat(model, seed=4)
    prompts = [prompt for prompt, _ in scripted.asked]
    assert prompts[0] == "你是詩人秋"
    assert prompts[1].startswith("你是詩人秋")
    assert len(prompts[1]) == len("你是詩人秋") + 12 + len("夜")
    assert prompts[2] == "你是詩人月"
    assert prompts[3].startswith("你是詩人月")
    assert {params.temperature for _, params in scripted.asked} == {0.3}
    messages = json.loads(saved.read_text())["messages"]
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user", "assistant"]
    errors = capsys.readouterr().err
    assert "`/temp` takes 0 to 2, not '9'" in errors
    assert "There is no '/tmp'. Did you mean '/temp'?" in errors
    assert "user: 夜" in errors


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    key = new_key(path, "me", Allowance())
    with live(create_app(FakeEngine(), keys=load_keys(path))) as url:
        yield url, key


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
def test_a_server_answers_alike(address: tuple[str, str], end: str, monkeypatch, capsys) -> None:
    url, key = address
    monkeypatch.setenv("WENFANG_API_KEY", key)
    assert main(["chat", url + end, "--once", "秋", "--seed", "3", "--system", "短"]) == 0
    assert len(capsys.readouterr().out.strip()) == 12
    type_in(monkeypatch, "秋\n" + "長" * 300 + "\n")
    assert main(["chat", url + end, "--seed", "3"]) == 0
    said = capsys.readouterr()
    assert len(said.out.strip()) == 12
    assert "12 tokens" in said.err
    assert "context is 200" in said.err


def test_a_server_that_is_not_there_is_named(address: tuple[str, str], monkeypatch, capsys) -> None:
    monkeypatch.delenv("WENFANG_API_KEY", raising=False)
    assert main(["chat", address[0], "--once", "秋"]) == 2
    assert "API key is missing" in capsys.readouterr().err
    assert main(["chat", "http://127.0.0.1:1", "--once", "秋"]) == 2
    assert "does not answer" in capsys.readouterr().err
    assert os.environ.get("WENFANG_API_KEY") is None


SCHEMA = {"type": "object", "properties": {"題": {"type": "string", "maxLength": 4}}, "required": ["題"],
          "additionalProperties": False}  # fmt: skip


def test_a_reply_fulfils_its_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA), encoding="utf-8")
    poet = str(Path(__file__).parents[2] / "models" / "poet")
    assert main(["chat", poet, "--once", "春", "--schema", str(path), "--seed", "1", "--max-tokens", "60"]) == 0
    jsonschema.validate(json.loads(capsys.readouterr().out), SCHEMA)
    assert main(["chat", poet, "--once", "春", "--schema", str(path), "--seed", "1", "--max-tokens", "2"]) == 0
    assert capsys.readouterr().err == f"{CUT}\n"


def test_a_schema_comes_and_goes_in_a_conversation(
    scripted: FakeEngine, model: Path, monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path
) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA), encoding="utf-8")
    (tmp_path / "broken.json").write_text("{")
    type_in(monkeypatch, f"/schema {path}\n秋\n/schema {tmp_path}/broken.json\n夜\n/schema\n月\n")
    chat(model)
    assert [params.grammar and json.loads(params.grammar.schema) for _, params in scripted.asked] == [
        SCHEMA, SCHEMA, None
    ]  # fmt: skip
    assert "Cannot read a JSON Schema from" in capsys.readouterr().err
    assert main(["chat", str(model), "--once", "春", "--schema", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err


def test_a_reply_that_a_server_leaves_unfinished_is_none(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(Server, "__init__", lambda self, url: setattr(self, "_model", "m"))
    event = {"choices": [{"delta": {"content": "半"}, "finish_reason": None}]}
    lines = b"data: " + json.dumps(event).encode() + b"\n"
    monkeypatch.setattr(Server, "_open", lambda self, path, body: io.BytesIO(lines))
    assert main(["chat", "http://server", "--once", "春"]) == 1
    assert "left before its answer was whole" in capsys.readouterr().err
    type_in(monkeypatch, "春\n夏\n")
    assert main(["chat", "http://server"]) == 0
    said = capsys.readouterr()
    assert said.out.count("半\n") == said.err.count("left before its answer was whole") == 2


def test_a_server_is_asked_for_the_form(monkeypatch: pytest.MonkeyPatch) -> None:
    talk = Conversation("", 1.0, 1.0, None, None, remember=False, schema=json.dumps(SCHEMA))
    monkeypatch.setattr(Server, "__init__", lambda self: setattr(self, "_model", "m"))
    asked: list[dict[str, object]] = []

    def opened(self: Server, path: str, body: dict[str, object]) -> io.BytesIO:
        asked.append(body)
        choice = {"delta": {"content": "{"}, "finish_reason": "length"}
        return io.BytesIO(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n")

    monkeypatch.setattr(Server, "_open", opened)
    assert [(piece.text, piece.cut) for piece in Server().reply(talk, "春")] == [("{", True)]
    # Both judges of a schema read the same one: the server's own parser of requests accepts it.
    form = ResponseFormat.model_validate(asked[0]["response_format"])
    assert form.grammar("response_format") == JsonSchema.of(SCHEMA)


def test_a_server_is_given_the_turns_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    talk = Conversation("簡短", 1.0, 1.0, None, None, remember=True, turns=[("春", "花"), ("夏", "風"), ("秋", "月")])
    monkeypatch.setattr(Server, "__init__", lambda self: vars(self).update(_model="m", _key=None, _url="http://x"))
    heard: list[list[str]] = []

    def urlopen(request: urllib.request.Request, timeout: float) -> io.BytesIO:
        messages = json.loads(request.data)["messages"]
        heard.append([message["content"] for message in messages])
        if len(messages) > 4:
            said = {"error": {"message": "too long", "code": "context_length_exceeded"}}
            raise urllib.error.HTTPError("", 400, "", Message(), io.BytesIO(json.dumps(said).encode()))
        choice = {"delta": {"content": "雪"}, "finish_reason": "stop"}
        return io.BytesIO(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    assert [piece.text for piece in Server().reply(talk, "冬")] == ["雪"]
    assert heard[-1] == ["簡短", "秋", "月", "冬"]
    assert [len(messages) for messages in heard] == [8, 6, 4]
    assert len(talk.turns) == 3  # For /save: it is the server that cannot read them all.
