"""From an engine's deltas to one JSON object or a stream of events: the same steps either way, so that both agree."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from wenfang.core.errors import WenfangError
from wenfang.core.language import say
from wenfang.serve.body import too_slow, unless_gone
from wenfang.serve.callers import caller_of
from wenfang.serve.dispatch import Generation
from wenfang.serve.errors import ApiError, as_api_error
from wenfang.serve.limits import Limits

if TYPE_CHECKING:
    from wenfang.engine import Delta

LINE_BREAKS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}
"""Unicode line ends that JSON leaves as they are but some readers of event streams split lines at."""

Event = dict[str, Any]


@dataclass
class Usage:
    """Tokens read and written; a prompt counts once however many choices continue it."""

    prompt_tokens: int
    completion_tokens: int = 0
    charged: int = 0
    """Those that whoever asked has been charged for."""

    @property
    def total_tokens(self) -> int:
        """Both."""
        return self.prompt_tokens + self.completion_tokens

    def openai(self) -> dict[str, int]:
        """OpenAI's object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.total_tokens,
        }


class Answer(Protocol):
    """An answer under way. Events are for those who watch; `whole` is for those who wait."""

    media_type: str
    usage: Usage

    def begin(self) -> Iterable[Event]: ...

    def add(self, choice: int, delta: "Delta") -> Iterable[Event]: ...

    def complete(self, choice: int) -> bool: ...

    def end(self) -> Iterable[Event]: ...

    def whole(self) -> dict[str, Any]: ...

    def failed(self, body: dict[str, Any]) -> Event: ...

    def line(self, event: Event) -> str: ...

    @property
    def last_line(self) -> str: ...


async def respond(
    request: Request, answer: Answer, generation: Generation, held: AsyncExitStack, limits: Limits, *, stream: bool
) -> Response:
    """Wait for the whole answer, or begin to stream it once its first token is there.

    Args:
        held: what must be let go when the answer is over: the generation, the model.

    Raises:
        WenfangError: the engine refused or failed before the first token, or before the end of a whole answer.
    """
    _charge(request, answer)
    if not stream:
        try:
            await unless_gone(request, _collect(request, answer, generation), limits)
        except asyncio.CancelledError:
            raise _shutting_down() from None
        return JSONResponse(answer.whole())
    # An error that shows before the first token still gets its own status.
    try:
        await unless_gone(request, generation.ready(), limits)
    except asyncio.CancelledError:
        raise _shutting_down() from None
    return EventStream(_events(request, answer, generation, limits), held.pop_all(), answer)


class EventStream(StreamingResponse):
    """An answer as it is written, which ends with the connection however that ends."""

    def __init__(self, events: AsyncIterator[str], held: AsyncExitStack, answer: Answer) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type=f"{answer.media_type}; charset=utf-8", headers=headers)
        self._held, self._answer = held, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; a client that leaves stops the writing, and a server that ends tells why it does."""
        async with self._held:
            try:
                await super().__call__(scope, receive, send)
            except asyncio.CancelledError:
                last = self._answer.line(self._answer.failed(_shutting_down().body()))
                await send({"type": "http.response.body", "body": last.encode(), "more_body": False})


class ServerSentEvents:
    """Lines of an event stream in OpenAI's way."""

    media_type = "text/event-stream"

    def line(self, event: Event) -> str:
        """One event."""
        return f"data: {compact(event)}\n\n"

    def failed(self, body: dict[str, Any]) -> Event:
        """An error after the first token is an event too."""
        return body

    @property
    def last_line(self) -> str:
        """What tells a client that nothing is missing."""
        return "data: [DONE]\n\n"


def _shutting_down() -> ApiError:
    """An answer that the server's end cuts off: uvicorn cancels what its time to drain does not suffice for."""
    return ApiError(
        say(zh="伺服器正在關閉，回覆未完成。", en="The server is shutting down before the answer is finished."),
        status=503,
        kind="server_error",
        code="shutting_down",
        retry_after_s=1,
    )


def compact(value: dict[str, Any]) -> str:
    """JSON on one line, whatever a reader takes for the end of a line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(LINE_BREAKS)


def _charge(request: Request, answer: Answer) -> None:
    """Count what was read and written since the last time: as it comes, so that requests side by side see it."""
    usage = answer.usage
    caller_of(request).spend(usage.total_tokens - usage.charged)
    usage.charged = usage.total_tokens


async def _collect(request: Request, answer: Answer, generation: Generation) -> None:
    async for choice, delta in generation:
        for _ in answer.add(choice, delta):
            pass
        _charge(request, answer)
        if answer.complete(choice):
            generation.stop(choice)
    for _ in answer.end():
        pass


async def _events(request: Request, answer: Answer, generation: Generation, limits: Limits) -> AsyncIterator[str]:
    deadline = time.monotonic() + limits.answer_s
    try:
        for event in answer.begin():
            yield answer.line(event)
        async for choice, delta in generation:
            events = list(answer.add(choice, delta))
            _charge(request, answer)
            for event in events:
                yield answer.line(event)
            if answer.complete(choice):
                generation.stop(choice)
            if time.monotonic() > deadline:
                raise too_slow(limits)
        for event in answer.end():
            yield answer.line(event)
    except WenfangError as error:
        yield answer.line(answer.failed(as_api_error(error).body()))
        return
    if answer.last_line:
        yield answer.last_line
