"""`wenfang chat`, `wenfang serve` and `wenfang studio` as a user runs them, with a tiny random model."""

import codecs
import io
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from serve.fakes import FakeEngine

from wenfang.cli import main
from wenfang.cli.chat import chat
from wenfang.engine import Delta, Engine, SamplingParams
from wenfang.serve import claim_port


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """`Engine.load` gives a scripted engine."""
    engine = FakeEngine()
    engine.close = lambda: None
    monkeypatch.setattr(Engine, "load", lambda folder, **options: engine)
    return engine


def start(*words: str, **options: object) -> subprocess.Popen:
    environment = {**os.environ, "WENFANG_LANGUAGE": "en", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-m", "wenfang", *words], env=environment, **options)


def test_once_prints_the_reply_and_nothing_else(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["chat", str(model), "--once", "寫一首五絕。", "--seed", "3", "--max-tokens", "20"]
    assert main(words) == 0
    first = capfd.readouterr()
    assert main(words) == 0
    again = capfd.readouterr()
    assert first.out == again.out
    assert first.out.strip()
    assert first.err == ""


def test_a_session_answers_line_by_line(
    scripted: FakeEngine, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("秋夜\n\n再來\n/quit\n沒人讀\n"))
    chat(model, seed=1)
    captured = capsys.readouterr()
    assert [len(line) for line in captured.out.splitlines()] == [12, 12]
    assert captured.err.count("12 tokens") == 2


def test_a_poem_is_judged_beneath(
    scripted: FakeEngine, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("serve.fakes.CHARACTERS", "春")
    scripted.tokens = 20
    monkeypatch.setattr(sys, "stdin", io.StringIO("寫一首五絕。\n"))
    chat(model)
    assert "Breaks the rules: " in capsys.readouterr().err


def test_a_question_too_long_does_not_end_the_session(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("長" * 400 + "\n短\n"))
    chat(model, max_tokens=5)
    captured = capsys.readouterr()
    assert "context is 256" in captured.err
    assert "5 tokens" in captured.err or "tokens ·" in captured.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["chat", "{model}", "--once", "a", "--temperature", "-1"], "`temperature` is -1.0"),
        (["chat", "{model}", "--once", "\udcff"], "not UTF-8"),
        (["chat", "{model}", "--once", "a", "--temperature", "2.1"], "`temperature` is 2.1"),
        (["chat", "{missing}", "--once", "a"], "No model"),
        (["chat", "{missing}.gguf", "--once", "a"], "No file"),
        (["chat", "{model}", "--once", " "], "`--once` is empty"),
        (["chat", "{model}", "--once", "a", "--quantize", "int3"], "'int3'; known are int8, int4"),
        (["serve", "{model}", "--port", "{taken}"], "already in use"),
        (["studio", "{model}", "--port", "{taken}"], "already in use"),
        (["studio", "{empty}"], "neither a model"),
    ],
)
def test_bad_input_ends_with_one_line_and_exit_code_2(
    words: list[str], message: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with claim_port("127.0.0.1", 0) as taken:
        places = {"model": model, "missing": tmp_path / "no", "empty": tmp_path, "taken": taken.getsockname()[1]}
        code = main([word.format(**places) for word in words])
    captured = capsys.readouterr()
    assert code == 2
    assert message in captured.err
    assert len(captured.err.splitlines()) <= 2
    assert captured.out == ""


def test_ctrl_c_stops_the_reply_and_keeps_the_session(
    scripted: FakeEngine, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = scripted.stream

    def interrupted(prompt: list[int], params: SamplingParams) -> Iterator[Delta]:
        for delta in write(prompt, params):
            yield delta
            if delta.completion_tokens == 3 and chr(prompt[0]) == "秋":
                raise KeyboardInterrupt

    monkeypatch.setattr(scripted, "stream", interrupted)
    monkeypatch.setattr(sys, "stdin", io.StringIO("秋\n春\n"))
    chat(model)
    captured = capsys.readouterr()
    assert [len(line) for line in captured.out.splitlines()] == [3, 12]
    assert "(stopped)" in captured.err


def test_ctrl_c_at_the_prompt_leaves(
    scripted: FakeEngine, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(prompt: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    assert main(["chat", str(model)]) == 0
    assert capsys.readouterr().err == ""


def test_a_terminal_session_is_safe_and_left_with_ctrl_d(model: Path) -> None:
    terminal, inner = pty.openpty()
    session = start("chat", str(model), stdin=inner, stdout=inner, stderr=inner)
    os.close(inner)
    try:
        assert "› " in read_until(terminal, "› ")
        os.write(terminal, "春\n".encode())
        reply = read_until(terminal, "per second")
        assert "per second" in reply
        assert "› " in read_until(terminal, "› ")
        # A random model writes any byte; none of them may reach the terminal as a command (readline's own may).
        assert not set(reply.partition("\n")[2].partition("tokens")[0]) & {"\x07", "\x08", "\x0e", "\x7f", "\x9b"}
        os.write(terminal, "夏\n".encode())
        read_until(terminal, "\n")
        while os.read(terminal, 1) < b"\x80":  # What readline says before the reply.
            pass
        os.write(terminal, b"typed ahead")
        assert "typed" not in read_until(terminal, "per second")
        assert "typed ahead" in read_until(terminal, "typed ahead")
        os.write(terminal, b"\x15\x1b[A")
        assert "夏" in read_until(terminal, "夏")  # The last question, by the arrow.
        os.write(terminal, "\x15詩\x7f秋\n".encode())
        read_until(terminal, "per second")
        os.write(terminal, b"/history\n")
        assert "user: 秋" in read_until(terminal, "user: 秋")  # A wide character is taken back as one.
        assert "› " in read_until(terminal, "› ")  # Before that the terminal would read Ctrl-D, not the program.
        os.write(terminal, b"\x15\x04")
        assert "Traceback" not in read_until(terminal)
        assert session.wait(10) == 0
    finally:
        session.kill()
        session.wait()
        os.close(terminal)


def read_until(terminal: int, mark: str = "\0") -> str:
    """What a terminal shows up to `mark`, or up to its end."""
    seen, deadline = "", time.monotonic() + 20
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    while mark not in seen and select.select([terminal], [], [], max(0, deadline - time.monotonic()))[0]:
        try:
            seen += decoder.decode(os.read(terminal, 1))
        except OSError:  # The other end is closed.
            break
    return seen


def test_the_studio_runs_until_interrupted(model: Path) -> None:
    with claim_port("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    studio = start("studio", str(model), "--port", str(port), stderr=subprocess.PIPE, text=True)
    try:
        assert studio.stderr is not None
        assert f"http://127.0.0.1:{port}" in studio.stderr.readline()
        assert httpx.get(f"http://127.0.0.1:{port}/health", timeout=20).json() == {"status": "ok", "model": "tiny"}
        assert "文房" in httpx.get(f"http://127.0.0.1:{port}/").text
        studio.send_signal(signal.SIGINT)
        assert studio.wait(15) == 0
        assert studio.stderr.read() == ""
    finally:
        studio.kill()
        studio.wait()
