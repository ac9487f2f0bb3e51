"""The FastAPI application: `/v1/chat/completions`, `/v1/models` and `/health`, in OpenAI's shapes."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from wenfang.core.errors import InputError, WenfangError
from wenfang.core.language import say
from wenfang.serve.completions import Answer, collect, prepare
from wenfang.serve.dispatch import Dispatcher, Generation
from wenfang.serve.errors import ApiError, Overloaded, from_validation
from wenfang.serve.guard import SameOrigin
from wenfang.serve.listen import HOST, LOOPBACK
from wenfang.serve.schema import ChatRequest

if TYPE_CHECKING:
    from wenfang.engine import Engine

MAX_BODY_BYTES = 1 << 20
"""Far more than any conversation that fits a context; larger bodies are refused unread."""

T = TypeVar("T")


def create_app(engine: "Engine", *, host: str = HOST, dispatcher: Dispatcher | None = None) -> FastAPI:
    """An application that answers with `engine`.

    Args:
        engine: the loaded model; the caller closes it after the server has stopped.
        host: where the server will listen; on a loopback address no other name is accepted in `Host`.
        dispatcher: shares the engine with someone else in this process, such as the studio.
    """
    desk = dispatcher or Dispatcher(engine)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        desk.close()

    # Swagger's pages would load scripts from a CDN.
    app = FastAPI(title="Wenfang", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_middleware(SameOrigin, hosts=LOOPBACK if host in LOOPBACK else None)
    app.add_exception_handler(WenfangError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_error)
    app.add_exception_handler(Exception, _answer_error)
    _add_models(app, engine)
    _add_health(app, desk)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        body = await _read_body(request)
        try:
            asked = ChatRequest.model_validate_json(body)
        except ValidationError as error:
            raise from_validation(error) from None
        asked.check()
        if asked.model != engine.name:
            raise _no_such_model(asked.model, engine.name)
        job = await asyncio.to_thread(prepare, asked, engine)
        answer = Answer(engine.name, job)
        with ExitStack() as stack:
            generation = stack.enter_context(desk.start(job.prompt, job.params))
            if not asked.stream:
                return JSONResponse(await _unless_gone(request, collect(generation, answer)))
            # An error that shows before the first token still gets its own status.
            await _unless_gone(request, generation.ready())
            include_usage = asked.stream_options is not None and asked.stream_options.include_usage
            stack.pop_all()  # From here on the stream itself cancels.
            return EventStream(generation, answer.events(aiter(generation), include_usage=include_usage))

    @app.api_route("/v1/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    async def unknown(path: str) -> Response:
        raise ApiError(
            say(zh=f"沒有 /v1/{path} 這個介面。", en=f"There is no endpoint /v1/{path}."),
            status=404,
            code="unknown_url",
        )

    return app


class EventStream(StreamingResponse):
    """Server-sent events of one generation, which ends with the connection however that ends."""

    def __init__(self, generation: Generation, events: AsyncIterator[str]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream; charset=utf-8", headers=headers)
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; a client that leaves stops the writing."""
        with self._generation:
            await super().__call__(scope, receive, send)


def _add_models(app: FastAPI, engine: "Engine") -> None:
    model = {
        "id": engine.name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "wenfang",
        "context_length": engine.context,
    }

    @app.get("/v1/models")
    async def models() -> JSONResponse:
        return JSONResponse({"object": "list", "data": [model]})

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> JSONResponse:
        if name != engine.name:
            raise _no_such_model(name, engine.name)
        return JSONResponse(model)


def _add_health(app: FastAPI, dispatcher: Dispatcher) -> None:
    @app.get("/health")
    async def health() -> JSONResponse:
        try:
            await dispatcher.probe()
        except WenfangError as error:
            return JSONResponse({"status": "failing", "model": dispatcher.engine.name, "error": str(error)}, 503)
        return JSONResponse({"status": "ok", "model": dispatcher.engine.name})


async def _answer_error(request: Request, error: Exception) -> Response:
    """Any known error as OpenAI's clients expect it."""
    headers = {}
    if isinstance(error, HTTPException):
        error = ApiError(str(error.detail), status=error.status_code)
    elif isinstance(error, Overloaded):
        error = ApiError(str(error), status=503, kind="server_error", code="overloaded")
        headers["Retry-After"] = "1"
    elif isinstance(error, InputError):
        error = ApiError(str(error), code="invalid_value")
    elif not isinstance(error, ApiError):
        error = ApiError(str(error), status=500, kind="server_error", code="engine_failure")
    return JSONResponse(error.body(), error.status, headers)


def _no_such_model(asked: str, served: str) -> ApiError:
    return ApiError(
        say(
            zh=f"沒有模型 {asked!r}。這裡提供的是 {served!r}。",
            en=f"The model {asked!r} does not exist. This server offers {served!r}.",
        ),
        status=404,
        param="model",
        code="model_not_found",
    )


async def _read_body(request: Request) -> bytes:
    """The body, or 413 when it is larger than allowed. A somewhat larger one is read to its end and dropped, since
    many clients only look for an answer after they have sent everything."""
    body, size = b"", 0
    declared = request.headers.get("content-length", "")
    excessive = declared.isdecimal() and int(declared) > 8 * MAX_BODY_BYTES
    if not excessive:
        async for chunk in request.stream():
            size += len(chunk)
            if size <= MAX_BODY_BYTES:
                body += chunk
            elif size > 8 * MAX_BODY_BYTES:
                break
    if excessive or size > MAX_BODY_BYTES:
        raise ApiError(
            say(
                zh=f"請求內容超過 {MAX_BODY_BYTES:,} 位元組。請縮短對話。",
                en=f"The request body is larger than {MAX_BODY_BYTES:,} bytes. Shorten the conversation.",
            ),
            status=413,
            code="request_too_large",
        )
    return body


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, given up as soon as the client hangs up. The request's body must have been read.

    Raises:
        ApiError: the client is gone, so nobody will read this.
    """
    working = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ApiError("client disconnected", status=499, code="client_disconnected")
        return working.result()
    finally:
        working.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
