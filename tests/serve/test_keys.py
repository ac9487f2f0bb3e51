"""Keys, limits and the door: who may come in, how often, with how much."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from serve.fakes import FakeEngine, live, undisturbed

from wenfang.cli import main
from wenfang.core.errors import InputError
from wenfang.serve import Allowance, Dispatcher, create_app, create_app_for, load_keys, new_key
from wenfang.serve.gate import OPEN_PATHS
from wenfang.serve.limits import Limits
from wenfang.serve.metrics import Metrics
from wenfang.serve.models import OneModel
from wenfang.serve.routes import ROUTES

ASK = {"model": "fake-poet", "messages": [{"role": "user", "content": "秋"}]}
CHAT = "/v1/chat/completions"
POET = Path(__file__).parents[2] / "models" / "poet"


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A server with a key of each kind."""
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    keys = {
        name: new_key(path, name, allowance)
        for name, allowance in {
            "free": Allowance(),
            "slow": Allowance(requests_per_minute=2),
            "one": Allowance(concurrent=1),
            "short": Allowance(tokens_per_minute=5),
            "shared": Allowance(tokens_per_minute=5),
        }.items()
    }
    engine = FakeEngine()
    app = create_app(engine, keys=load_keys(path))
    with live(app) as url:
        yield SimpleNamespace(url=url, keys=keys, path=path, engine=engine, app=app)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_every_route_but_the_open_ones_asks_for_a_key(locked) -> None:
    paths = {(method, route.path) for route in locked.app.routes for method in getattr(route, "methods", ())}
    assert {(route.method, route.path) for route in ROUTES} <= paths
    assert OPEN_PATHS == ("/health",)
    for method, path in paths:
        filled = path.replace("{path:path}", "x").replace("{model:path}", "fake-poet")
        status = httpx.request(method, locked.url + filled).status_code
        assert (status == 401) == (filled not in OPEN_PATHS), (method, path, status)


WRONG_KEYS = {
    "missing": {},
    "empty": {"Authorization": "Bearer"},
    "wrong": bearer("wrong"),
    "no scheme": {"Authorization": "x"},
    "another scheme": {"Authorization": "Basic {free}"},
    "long": bearer("x" * 10_000),
    "not ASCII": bearer("é"),
    "another header": {"X-Api-Key": "{free}"},
}


def test_wrong_keys_are_refused_beside_a_stream(locked) -> None:
    right = bearer(locked.keys["free"])
    with undisturbed(locked.url, locked.engine, **right):
        for name, headers in WRONG_KEYS.items():
            encoded = {k: v.format(free=locked.keys["free"]).encode() for k, v in headers.items()}
            response = httpx.post(locked.url + CHAT, json=ASK, headers=encoded)
            assert response.status_code == 401, name
            assert response.json()["error"]["code"] == "invalid_api_key"
        for size, status in ((20_000, b"431"), (1_000_000, b"400")):
            with socket.create_connection(("127.0.0.1", int(locked.url.rpartition(":")[2]))) as connection:
                head = b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer " + b"x" * size
                try:
                    connection.sendall(head + b"\r\n\r\n")
                    answer = connection.recv(100)
                except ConnectionError:  # It did not even wait for the end.
                    answer = b"HTTP/1.1 400"
                assert answer.startswith(b"HTTP/1.1 " + status)
    assert httpx.post(locked.url + CHAT, json=ASK, headers=right).status_code == 200


def test_the_file_holds_no_key_and_nobody_else_reads_it(locked) -> None:
    text = locked.path.read_text()
    for key in locked.keys.values():
        assert key not in text
        assert hashlib.sha256(key.encode()).hexdigest() in text
    assert locked.path.stat().st_mode & 0o077 == 0


def test_requests_per_minute(locked) -> None:
    answers = [httpx.get(f"{locked.url}/v1/models", headers=bearer(locked.keys["slow"])) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert 1 <= int(answers[2].headers["Retry-After"]) <= 31
    assert answers[2].json()["error"]["type"] == "rate_limit_error"


def test_tokens_per_minute(locked) -> None:
    key = bearer(locked.keys["short"])
    assert httpx.post(locked.url + CHAT, json=ASK, headers=key).json()["usage"]["total_tokens"] == 13
    assert httpx.post(locked.url + CHAT, json=ASK, headers=key).status_code == 429


def test_tokens_count_as_they_are_written(locked) -> None:
    key, locked.engine.pause_s, locked.engine.tokens = bearer(locked.keys["shared"]), 0.02, 60
    with httpx.stream("POST", locked.url + CHAT, json={**ASK, "stream": True}, headers=key) as first:
        lines = first.iter_lines()
        for _ in range(20):  # Its role, then about nine tokens.
            next(lines)
        answer = httpx.post(locked.url + CHAT, json=ASK, headers=key)
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"
        assert locked.engine.running == 1  # The first goes on, in debt.
        assert list(lines)[-2] == "data: [DONE]"
    locked.engine.tokens = 12


def test_requests_at_once(locked) -> None:
    key, locked.engine.pause_s = bearer(locked.keys["one"]), 0.02
    with httpx.stream("POST", locked.url + CHAT, json={**ASK, "stream": True}, headers=key) as first:
        lines = first.iter_lines()
        next(lines)
        assert httpx.post(locked.url + CHAT, json=ASK, headers=key).status_code == 429
        list(lines)
    assert httpx.post(locked.url + CHAT, json=ASK, headers=key).status_code == 200


def test_a_key_is_printed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.json"
    assert main(["serve", "key", "new", str(path), "--name", "alice", "--tokens-per-minute", "9"]) == 0
    key = capsys.readouterr().out.strip()
    assert load_keys(path).find(key).allowance.tokens_per_minute == 9
    assert load_keys(path).find(key[:-1]) is None
    assert main(["serve", "key", "new", str(path), "--name", "alice"]) == 2
    assert "already has a key" in capsys.readouterr().err
    path.write_text(json.dumps({"keys": []}))
    assert main(["serve", str(tmp_path), "--keys", str(path)]) == 2


ENTRY = {"name": "alice", "sha256": "a" * 64}


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ([], "'JSON' must be an object"),
        ({"kys": []}, "there is no 'kys'. Did you mean 'keys'?"),
        ({"keys": {}}, "'keys' must be a list"),
        ({"keys": [5]}, "'keys[0]' must be an object"),
        ({"keys": [ENTRY, {"name": "bob"}]}, "'keys[1].sha256' is missing"),
        ({"keys": [{**ENTRY, "name": ""}]}, "'keys[0].name' must be a text of 1 to 64 characters"),
        ({"keys": [{**ENTRY, "sha256": "secretive"}]}, "'keys[0].sha256' must be 64 lower-case hexadecimal digits"),
        ({"keys": [{**ENTRY, "concurrent": "3"}]}, "'keys[0].concurrent' must be a whole number from 1 to"),
        ({"keys": [{**ENTRY, "tokens_per_minute": 10**400}]}, "'keys[0].tokens_per_minute' must be a whole number"),
        ({"keys": [{**ENTRY, "limit": 3}]}, "there is no 'keys[0].limit'. Known are name, sha256, requests_per_minute"),
    ],
)
def test_a_faulty_key_file_is_explained(content: object, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError) as refused:
        load_keys(path)
    assert str(refused.value).startswith(f"The key file {str(path)!r} cannot be used: {fault}")
    assert "\n" not in str(refused.value)
    assert "secretive" not in str(refused.value)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["serve", "key", "new", "k.json", "--requests-per-minute", "0"], "--requests-per-minute"),
        (["serve", "key", "new", "k.json", "--concurrent", "-1"], "--concurrent"),
        (["serve", "key", "new", "k.json", "--tokens-per-minute", str(2**31)], "--tokens-per-minute"),
        (["serve", "key", "new", "k.json", "--name", ""], "'name'"),
        (["serve", "nowhere", "--drain-s", "-5"], "--drain-s"),
        (["serve", str(POET), "--lookup", "0"], "--lookup"),
        (["serve", str(POET), "--port", "-1"], "--port"),
    ],
)
def test_a_number_out_of_range_is_refused_by_its_option(
    words: list[str], said: str, language: str, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WENFANG_LANGUAGE", language)
    assert main(words) == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.isascii() == (language == "en")
    assert not list(tmp_path.iterdir())


def test_what_takes_too_long_is_ended() -> None:
    engine = FakeEngine()
    engine.pause_s, engine.tokens = 0.05, 100
    limits = Limits(body_s=0.2, answer_s=0.4)
    with live(create_app_for(OneModel(Dispatcher(engine)), metrics=Metrics(), limits=limits)) as url:
        assert httpx.post(url + CHAT, json=ASK).status_code == 504
        last = httpx.post(url + CHAT, json={**ASK, "stream": True}).text.splitlines()[-2]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as connection:
            head = "Host: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 9"
            connection.sendall(f"POST {CHAT} HTTP/1.1\r\n{head}\r\n\r\n{{".encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 408")
        assert engine.closed.wait(2)


def test_more_requests_than_fit_are_told_to_wait() -> None:
    with live(create_app_for(OneModel(Dispatcher(FakeEngine())), metrics=Metrics(), limits=Limits(requests=0))) as url:
        response = httpx.get(f"{url}/v1/models")
        assert response.status_code == 503
        assert response.headers["Retry-After"]


def write_slowly(drain_s: int) -> tuple["subprocess.Popen[str]", str]:
    """A server that takes two seconds for an answer, and its address."""
    script = f"""
from serve.fakes import FakeEngine
from wenfang.cli.interrupt import unwinding
from wenfang.serve import claim_port, create_app, run_server, url_of
engine = FakeEngine()
engine.tokens, engine.pause_s = 40, 0.05
listener = claim_port("127.0.0.1", 0)
with unwinding():
    run_server(create_app(engine), listener, on_ready=lambda: print(url_of(listener), flush=True), drain_s={drain_s})
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    server = subprocess.Popen([sys.executable, "-c", script], **pipes, text=True, env=environment)
    assert server.stdout is not None
    return server, server.stdout.readline().strip()


@pytest.mark.parametrize("second", [False, True])
def test_a_signal_drains_and_a_second_one_ends(second: bool) -> None:
    server, url = write_slowly(drain_s=20)
    with httpx.stream("POST", url + CHAT, json={**ASK, "stream": True}, timeout=20) as response:
        lines = response.iter_lines()
        next(lines)
        server.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/v1/models")
        if second:
            server.send_signal(signal.SIGTERM)
            *_, last = (line for line in lines if line)
            assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
            server.wait(2)
            assert server.stderr is not None
            assert server.stderr.read() == ""
            return
        assert [line for line in lines if line][-1] == "data: [DONE]"
    server.wait(10)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_outlives_the_drain_ends_in_an_error(stream: bool) -> None:
    server, url = write_slowly(drain_s=1)
    threading.Timer(0.5, server.send_signal, [signal.SIGTERM]).start()
    response = httpx.post(url + CHAT, json={**ASK, "stream": stream}, timeout=20)
    *_, last = (line for line in response.text.splitlines() if line)
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
    assert response.status_code == (200 if stream else 503)
    server.wait(10)


def test_metrics_count_what_happened(url: str, engine) -> None:
    def figures() -> dict[str, float]:
        text = httpx.get(f"{url}/metrics").text
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in lines}

    before = figures()
    httpx.post(url + CHAT, json=ASK)
    httpx.post(url + CHAT, json={**ASK, "n": 0})
    after = figures()

    def gained(name: str) -> float:
        return after[name] - before.get(name, 0)

    path = f'path="{CHAT}"'
    assert gained('wenfang_generation_tokens_total{model="fake-poet"}') == 12
    assert gained('wenfang_prompt_tokens_total{model="fake-poet"}') == 1
    assert gained('wenfang_time_to_first_token_seconds_count{model="fake-poet"}') == 1
    assert gained('wenfang_inter_token_seconds_count{model="fake-poet"}') == 11
    assert gained(f'wenfang_errors_total{{{path},status="400"}}') == 1
    assert gained(f'wenfang_requests_total{{{path},status="200"}}') == 1
    assert after['wenfang_cache_used_ratio{model="fake-poet"}'] == 0.25
    assert after['wenfang_waiting{model="fake-poet"}'] == 2


def test_no_key_and_no_words_of_a_client_are_logged(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from serve.fakes import FakeEngine
from wenfang.serve import claim_port, create_app, load_keys, run_server, url_of
listener = claim_port("127.0.0.1", 0)
app = create_app(FakeEngine(), keys=load_keys(Path(sys.argv[1])))
run_server(app, listener, on_ready=lambda: print(url_of(listener), flush=True))
"""
    key = new_key(tmp_path / "keys.json", "alice", Allowance())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script, str(tmp_path / "keys.json")]
    log = (tmp_path / "log").open("w+")
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
    assert server.stdout is not None
    url = server.stdout.readline().strip()
    for content in ("secretive 秋", "secretive 早錯", "secretive 晚錯", "secretive " * 100):
        for stream in (True, False):
            body = {"model": "fake-poet", "messages": [{"role": "user", "content": content}], "stream": stream}
            httpx.post(url + CHAT, json=body, headers=bearer(key))
    httpx.post(f"{url}/v1/secretive?key={key}", content=b"secretive {", headers=bearer("secretive"))
    server.send_signal(signal.SIGINT)
    rest, _ = server.communicate(timeout=20)
    log.seek(0)
    for said in (rest, log.read()):
        assert "secretive" not in said
        assert key not in said
