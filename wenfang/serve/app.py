"""The FastAPI application: every route of the table behind one gate, errors in OpenAI's shape."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.routing import Route as StarletteRoute

from wenfang.core.errors import GrammarError, WenfangError
from wenfang.core.language import say
from wenfang.serve.body import check_query, read
from wenfang.serve.demands import held_by
from wenfang.serve.desk import Desk, Route
from wenfang.serve.dispatch import Dispatcher
from wenfang.serve.errors import ApiError, as_api_error
from wenfang.serve.gate import Gate
from wenfang.serve.guard import SameOrigin
from wenfang.serve.keys import KeyRing
from wenfang.serve.limits import LIMITS, Limits
from wenfang.serve.listen import HOST, LOOPBACK
from wenfang.serve.metrics import Metrics
from wenfang.serve.models import Models, OneModel
from wenfang.serve.routes import ROUTES

if TYPE_CHECKING:
    from wenfang.engine import TextEngine

ALL_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]


def create_app(
    engine: "TextEngine", *, host: str = HOST, dispatcher: Dispatcher | None = None, keys: KeyRing | None = None
) -> FastAPI:
    """An application that answers with `engine`.

    Args:
        engine: the loaded model; the caller closes it after the server has stopped.
        host: where the server will listen; on a loopback address no other name is accepted in `Host`.
        dispatcher: shares the engine with someone else in this process, such as the studio.
        keys: the keys that open the server; None leaves it open.
    """
    metrics = Metrics()
    shared = dispatcher or Dispatcher(engine)
    shared.meter = metrics
    return create_app_for(OneModel(shared), metrics=metrics, host=host, keys=keys)


def create_app_for(
    models: Models,
    *,
    metrics: Metrics,
    host: str = HOST,
    keys: KeyRing | None = None,
    limits: Limits = LIMITS,
) -> FastAPI:
    """An application that answers with these models; arguments as `create_app`."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        models.close()

    metrics.watch(models.loaded)
    desk = Desk(models, limits, metrics, locked=keys is not None)
    # Swagger's pages would load scripts from a CDN.
    app = FastAPI(title="Wenfang", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_middleware(Gate, keys=keys, limits=limits, observe=metrics.answered)
    app.add_middleware(SameOrigin, hosts=LOOPBACK if host in LOOPBACK else None)
    for kind in (WenfangError, HTTPException, Exception):
        app.add_exception_handler(kind, _answer_error)
    for route in ROUTES:
        app.add_api_route(route.path, _endpoint(route, desk), methods=[route.method], name=route.about)
    for prefix in ("/v1", "/api"):
        app.add_api_route(f"{prefix}/{{path:path}}", _unknown, methods=ALL_METHODS)
    return app


def _endpoint(route: Route, desk: Desk) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        if not route.page:
            check_query(request)
        asked = None if route.asks is None else await read(request, route.asks, desk.limits)
        try:
            return await route.handle(desk, request, asked)
        except GrammarError as error:
            raise ApiError(str(error), param=held_by(asked), code="invalid_value") from None

    return endpoint


async def _unknown(request: Request) -> Response:
    """Any other address below ours, or another method."""
    path, allowed = request.url.path[:200], set[str]()
    for route in request.app.routes:
        if isinstance(route, StarletteRoute) and route.matches(request.scope)[0] is Match.PARTIAL:
            allowed |= route.methods or set()
    if allowed:
        listed = ", ".join(sorted(allowed))
        error = ApiError(say(zh=f"{path} 只接受 {listed}。", en=f"{path} only takes {listed}."), status=405)
        return JSONResponse(error.body(), error.status, {"Allow": listed})
    raise _no_endpoint(path)


def _no_endpoint(path: str) -> ApiError:
    message = say(
        zh=f"沒有 {path} 這個介面。有哪些見 /docs。", en=f"There is no endpoint {path}. /docs shows those there are."
    )
    return ApiError(message, status=404, code="unknown_url")


async def _answer_error(request: Request, error: Exception) -> Response:
    """Any known error as OpenAI's clients expect it."""
    if isinstance(error, HTTPException) and error.status_code == 404:  # Starlette's own, for an address of no route.
        error = _no_endpoint(request.url.path[:200])
    shown = as_api_error(error)
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else shown.headers
    return JSONResponse(shown.body(), shown.status, headers)
