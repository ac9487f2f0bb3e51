"""Everything around the completions: health, odd requests, other people's pages, ports."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
from serve.fakes import FakeEngine, live

from wenfang.core.errors import PortError
from wenfang.serve import Dispatcher, claim_port, create_app

CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
ASK = {"model": "fake-poet", "messages": [{"role": "user", "content": "秋"}]}


def error_of(response: httpx.Response) -> dict:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_health_asks_the_model(url: str) -> None:
    response = httpx.get(f"{url}/health")
    assert (response.status_code, response.json()) == (200, {"status": "ok", "model": "fake-poet"})


@pytest.mark.parametrize("fault", ["raises", "hangs"])
def test_health_fails_when_the_model_does(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, released = FakeEngine(), threading.Event()

    def stream(prompt, params):
        if fault == "raises":
            raise RuntimeError("weights are gone")
        released.wait(5)
        yield from ()

    monkeypatch.setattr(engine, "write", stream)
    monkeypatch.setattr(Dispatcher.probe, "__kwdefaults__", {"timeout_s": 0.2})
    with live(create_app(engine)) as url:
        response = httpx.get(f"{url}/health")
        released.set()
    assert response.status_code == 503
    assert ("weights are gone" if fault == "raises" else "no answer") in response.json()["error"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model": "\xff"}', b'{"model": "\\ud800"}'])
def test_a_body_that_is_not_a_request_is_refused(url: str, body: bytes) -> None:
    response = httpx.post(url + CHAT, content=body, headers=JSON)
    assert response.status_code == 400
    assert error_of(response)["type"] == "invalid_request_error"


def test_an_oversized_body_is_refused(url: str) -> None:
    for size in (2 << 20, 64 << 20):
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as connection:
            kind = "Host: 127.0.0.1\r\nContent-Type: application/json"
            head = f"POST {CHAT} HTTP/1.1\r\n{kind}\r\nContent-Length: {size}\r\n\r\n"
            connection.sendall(head.encode() + b"x" * (2 << 20 if size == 2 << 20 else 0))
            assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")
    chunks = (b"x" * 65536 for _ in range(32))
    response = httpx.post(url + CHAT, content=chunks, headers=JSON)
    assert response.status_code == 413
    assert error_of(response)["code"] == "request_too_large"


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("Host: 127.0.0.1\r\nContent-Length: -5", "bad Content-Length"),
        ("Host: 127.0.0.1\r\nContent-Length: 1\r\nContent-Length: 2", "conflicting Content-Length headers"),
        ("Accept: */*", "Missing mandatory Host: header"),
        ("Host: 127.0.0.1\r\na b: c", "illegal header line."),
        ("Host: 127.0.0.1\r\nX: " + "x" * (65 << 10), "its head is larger than 65,536 bytes"),
        ("Host: 127.0.0.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nx", "illegal chunk"),
    ],
)
def test_what_is_no_http_is_refused_like_everything_else(url: str, head: str, said: str) -> None:
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as connection:
        sent = f"POST {CHAT} HTTP/1.1\r\n{head}\r\n\r\n".encode()
        connection.sendall(sent[:65_000])
        if rest := sent[65_000:66_000]:
            time.sleep(0.2)  # Bytes that the server has not read when it closes would cost its answer.
            connection.sendall(rest)
        answer = b"".join(iter(lambda: connection.recv(1000), b"")).decode()
    assert answer.startswith("HTTP/1.1 400 ")
    assert "content-type: application/json" in answer
    error = json.loads(answer.partition("\r\n\r\n")[2])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert said in error["message"]


def test_an_unknown_address_is_not_found(url: str) -> None:
    response = httpx.post(f"{url}/v1/audio", json={})
    assert response.status_code == 404
    assert error_of(response)["code"] == "unknown_url"
    assert error_of(httpx.get(url + CHAT))["message"]


@pytest.mark.parametrize("headers", [{"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Origin": "null"}])
def test_pages_from_elsewhere_are_kept_out(url: str, headers: dict[str, str]) -> None:
    response = httpx.post(url + CHAT, json=ASK, headers=headers)
    assert response.status_code == 403
    assert error_of(response)["code"] == "origin_not_allowed"
    assert "access-control-allow-origin" not in response.headers


def test_a_page_of_our_own_is_let_in(url: str) -> None:
    assert httpx.post(url + CHAT, json=ASK, headers={"Origin": url}).status_code == 200
    by_name = url.replace("127.0.0.1", "localhost")
    assert httpx.post(by_name + CHAT, json=ASK, headers={"Origin": by_name}).status_code == 200


def test_more_generations_than_it_can_hold_are_refused() -> None:
    engine = FakeEngine()
    engine.tokens, engine.pause_s = 50, 0.02
    with live(create_app(engine, dispatcher=Dispatcher(engine, max_generations=2))) as url:
        with httpx.stream("POST", url + CHAT, json={**ASK, "n": 2, "stream": True}) as first:
            events = first.iter_bytes()  # Kept, since httpx hangs up when it is collected.
            next(events)
            refused = httpx.post(url + CHAT, json=ASK)
            assert httpx.get(f"{url}/health").status_code == 200
        assert refused.status_code == 503
        assert refused.headers["Retry-After"]
        assert error_of(refused)["code"] == "overloaded"
        never = httpx.post(url + CHAT, json={**ASK, "n": 3})  # However long one waits.
        assert never.status_code == 400
        assert "this asks for 3" in error_of(never)["message"]
        assert engine.closed.wait(2)
        assert httpx.post(url + CHAT, json={**ASK, "max_tokens": 1}).status_code == 200


def test_a_port_in_use_is_named_before_anything_else() -> None:
    with claim_port("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            PortError, match=rf"Port {port} on 127.0.0.1 is already in use.*--port {port + 1}"
        ) as caught:
            claim_port("127.0.0.1", port)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [("127.0.0.1", 70000, "out of range"), ("192.0.2.1", 0, "no address"), ("no.such.host.invalid", 0, "no address")],
)
def test_an_address_that_cannot_be_had_is_explained(host: str, port: int, message: str) -> None:
    with pytest.raises(PortError, match=message):
        claim_port(host, port)


def test_an_interrupt_ends_the_server_in_order() -> None:
    script = """
from serve.fakes import FakeEngine
from wenfang.serve import claim_port, create_app, run_server, url_of
listener = claim_port("127.0.0.1", 0)
run_server(create_app(FakeEngine()), listener, on_ready=lambda: print(url_of(listener), flush=True))
print("closed", flush=True)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    server = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    assert server.stdout is not None
    url = server.stdout.readline().strip()
    assert httpx.get(f"{url}/v1/models").status_code == 200
    server.send_signal(signal.SIGINT)
    assert server.communicate(timeout=10)[0] == "closed\n"
    assert server.returncode == 0
