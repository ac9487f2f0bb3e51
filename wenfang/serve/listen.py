"""Where the server listens. The address is claimed before a model is loaded, so that a clash shows at once."""

import asyncio
import errno
import json
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING

from fastapi import FastAPI

from wenfang.core.errors import PortError
from wenfang.core.language import say
from wenfang.serve.errors import ApiError

if TYPE_CHECKING:
    import uvicorn

HOST = "127.0.0.1"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""The names of this machine that only programs on it can reach."""
SHUTDOWN_S = 3
"""How long open streams may run on after an interrupt."""
LAST_WORD_S = 1.0
"""How long answers that are cut off may take to say so."""
HEADER_S = 10.0
"""How long a new connection may take to send the head of its request."""
MAX_HEAD_BYTES = 64 << 10
"""A longer head of a request is refused unread."""


def claim_port(host: str, port: int) -> socket.socket:
    """A socket that listens on `host:port`; connections made before the server runs wait for it.

    Port 0 takes any free port; `getsockname()[1]` tells which.

    Raises:
        PortError: the port is taken, forbidden or out of range, or this machine has no such address.
    """
    if not 0 <= port <= 65535:
        raise PortError(
            say(
                zh=f"連接埠 {port} 超出範圍。請用 1024 到 65535 之間的數字，例如 --port 8000。",
                en=f"Port {port} is out of range. Use one from 1024 to 65535, such as --port 8000.",
            )
        )
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise _no_such_host(host) from None
    try:
        # A server stopped a moment ago leaves connections that would otherwise block the port for a minute.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise _explain(error, host, port) from None
    return listener


def url_of(listener: socket.socket) -> str:
    """The address to open in a browser on this machine."""
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"


def configure(app: FastAPI, *, drain_s: int = SHUTDOWN_S) -> "uvicorn.Config":
    """How uvicorn is to serve an application."""
    import h11
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Protocol(H11Protocol):
        """Closes connections whose first request does not come, and refuses what is no HTTP as all else is refused."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.loop.call_later(HEADER_S, self._hurry)

        def send_400_response(self, msg: str) -> None:
            if self.conn.our_state is h11.SEND_BODY:  # An answer is under way: nothing else can be said.
                self.transport.close()
                return
            body = json.dumps(_no_http(sys.exception() or msg).body(), ensure_ascii=False).encode()
            size = str(len(body))
            headers = [("content-type", "application/json"), ("content-length", size), ("connection", "close")]
            head = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
            events = (head, h11.Data(data=body), h11.EndOfMessage())
            self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
            self.transport.close()

        def _hurry(self) -> None:
            if self.cycle is None and not self.transport.is_closing():
                self.transport.close()

    return uvicorn.Config(
        app,
        http=Protocol,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=drain_s,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    )


def run_server(
    app: FastAPI, listener: socket.socket, *, on_ready: Callable[[], None] | None = None, drain_s: int = SHUTDOWN_S
) -> None:
    """Answer requests on a claimed port until SIGINT or SIGTERM; returns after an orderly shutdown: no new requests,
    those in progress finish or are cancelled. A second signal ends it at once.

    Args:
        on_ready: called once the server answers.
        drain_s: how long requests in progress may run on.
    """
    import uvicorn

    class Server(uvicorn.Server):
        """Tells when it is ready, and lets answers that it cuts off say so."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started and on_ready is not None:
                on_ready()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            await super().shutdown(sockets)
            cut = list(self.server_state.tasks)
            if self.force_exit:  # Otherwise uvicorn has cancelled them.
                for task in cut:
                    task.cancel()
            if cut:
                await asyncio.wait(cut, timeout=LAST_WORD_S)
            if self.force_exit:  # Uvicorn has skipped it, and would log a traceback when the loop ends in its midst.
                await self.lifespan.shutdown()

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            self.force_exit = self.should_exit
            super().handle_exit(sig, frame)

    with listener, suppress(KeyboardInterrupt):  # uvicorn raises the signal again once everything is closed.
        Server(configure(app, drain_s=drain_s)).run(sockets=[listener])


def _no_http(error: object) -> ApiError:
    """Bytes that h11 does not read as a request; `error` is what it says, without what it quotes."""
    reason = str(error).partition(": bytearray(")[0].rstrip(".")
    if getattr(error, "error_status_hint", 400) == 431:
        reason = say(zh=f"開頭超過 {MAX_HEAD_BYTES:,} 位元組", en=f"its head is larger than {MAX_HEAD_BYTES:,} bytes")
    return ApiError(
        say(
            zh=f"這不是有效的 HTTP/1.1 請求：{reason}。請檢查第一行與標頭。",
            en=f"This is no valid HTTP/1.1 request: {reason}. Check its first line and headers.",
        ),
        code="invalid_http",
    )


def _no_such_host(host: str) -> PortError:
    return PortError(
        say(
            zh=f"這台機器沒有位址 {host!r}。用 --host 127.0.0.1（僅限本機）或 0.0.0.0（所有網路介面）。",
            en=f"This machine has no address {host!r}. "
            "Use --host 127.0.0.1 (this machine only) or 0.0.0.0 (every network interface).",
        )
    )


def _explain(error: OSError, host: str, port: int) -> PortError:
    if error.errno == errno.EADDRNOTAVAIL:
        return _no_such_host(host)
    if error.errno == errno.EACCES:
        return PortError(
            say(
                zh=f"沒有權限使用連接埠 {port}。請改用 1024 以上的，例如 --port {port + 8000}。",
                en=f"No permission to use port {port}. Use one above 1023, such as --port {port + 8000}.",
            )
        )
    other = port + 1 if port < 65535 else port - 1
    return PortError(
        say(
            zh=f"{host} 的連接埠 {port} 已被其他程式使用。請先停止該程式，或換一個：--port {other}",
            en=f"Port {port} on {host} is already in use. Stop the program there, or choose another: --port {other}",
        )
    )
