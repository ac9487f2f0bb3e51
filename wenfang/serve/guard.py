"""What keeps other people's web pages away from a server that trusts whoever reaches it.

A page open in the user's browser can send requests to 127.0.0.1 too. Browsers put the page's address in `Origin`,
and a name that was rebound to 127.0.0.1 shows in `Host`; both are checked on requests and websockets. There is no
CORS: no page but our own may read an answer.
"""

from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from wenfang.core.language import say
from wenfang.serve.errors import ApiError


class SameOrigin:
    """ASGI middleware: refuses requests from pages of another origin and, given `hosts`, for any other name.

    Args:
        app: the application behind it.
        hosts: the names this server may be called by, without port; None accepts any.
    """

    def __init__(self, app: ASGIApp, *, hosts: tuple[str, ...] | None) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the connection on, or answer 403."""
        if scope["type"] not in ("http", "websocket") or self._allowed(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "origin"})
            return
        error = ApiError(
            say(
                zh="拒絕來自其他網頁或主機名稱的請求。請直接以伺服器顯示的網址連線。",
                en="Refused: the request came from another web page or host name. "
                "Connect to the address the server printed.",
            ),
            status=403,
            code="origin_not_allowed",
        )
        await JSONResponse(error.body(), error.status)(scope, receive, send)

    def _allowed(self, headers: Headers) -> bool:
        host, origin = headers.get("host", ""), headers.get("origin")
        try:
            name = urlsplit(f"//{host}").hostname
            page = None if origin is None else urlsplit(origin).netloc
        except ValueError:  # Such as an IPv6 address without its closing bracket.
            return False
        return (self._hosts is None or name in self._hosts) and page in (None, host)
