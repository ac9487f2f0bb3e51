"""The one door: who may come in, how many at once, and with how heavy headers. Everything behind it has a caller."""

import time
from collections.abc import Callable

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wenfang.core.language import say
from wenfang.serve.callers import Caller
from wenfang.serve.errors import ApiError
from wenfang.serve.keys import KeyRing
from wenfang.serve.limits import Limits

OPEN_PATHS = ("/health",)
"""What anybody may ask without a key: a load balancer has none."""

Observe = Callable[[str, int, float], None]


class Gate:
    """ASGI middleware: header size, requests at once, key, and the key's limits.

    Args:
        app: the application behind it.
        keys: the keys that open the server; None leaves it open.
        limits: bounds for everybody together.
        observe: told the path, status and seconds of every answer.
    """

    def __init__(self, app: ASGIApp, *, keys: KeyRing | None, limits: Limits, observe: Observe) -> None:
        self._app = app
        self._keys = keys
        self._limits = limits
        self._observe = observe
        self._anyone = Caller()
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401, 429, 431 or 503."""
        if scope["type"] == "websocket" and self._keys is None:
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "key"})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, started = 499, time.monotonic()

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._let_in(scope, receive, watch)
        except ApiError as error:
            await JSONResponse(error.body(), error.status, error.headers)(scope, receive, watch)
        finally:
            route = scope.get("route")
            self._observe(str(getattr(route, "path", "unknown")), status, time.monotonic() - started)

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._check_weight(scope)
        caller = scope["wenfang.caller"] = self._caller(scope)
        if self._inside >= self._limits.requests and scope["path"] not in OPEN_PATHS:
            raise ApiError(
                say(zh="伺服器已滿。請稍後再試。", en="The server is full. Try again in a moment."),
                status=503,
                kind="server_error",
                code="overloaded",
                retry_after_s=1,
            )
        with caller.admit():
            self._inside += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._inside -= 1

    def _check_weight(self, scope: Scope) -> None:
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        if size + len(scope.get("raw_path") or b"") + len(scope["query_string"]) > self._limits.header_bytes:
            raise ApiError(
                say(
                    zh=f"請求標頭超過 {self._limits.header_bytes:,} 位元組。",
                    en=f"The request's headers are larger than {self._limits.header_bytes:,} bytes.",
                ),
                status=431,
                code="headers_too_large",
            )

    def _caller(self, scope: Scope) -> Caller:
        if self._keys is None or scope["path"] in OPEN_PATHS:
            return self._anyone
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        caller = self._keys.find(key.strip()) if scheme.lower() == "bearer" else None
        if caller is None:
            raise ApiError(
                say(
                    zh="API 金鑰缺少或不正確。請以 `Authorization: Bearer <金鑰>` 附上。",
                    en="The API key is missing or wrong. Send it as `Authorization: Bearer <key>`.",
                ),
                status=401,
                kind="authentication_error",
                code="invalid_api_key",
            )
        return caller
