"""Reading a request: its bytes within limits, its JSON, its typed form; and noticing when the client has left."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from wenfang.core.language import say
from wenfang.serve.errors import ApiError, from_validation
from wenfang.serve.limits import Limits
from wenfang.serve.strict_json import read_object

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

DROPPED = 8
"""A body up to this many times too large is read to its end and dropped, since many clients only look for an answer
after they have sent everything."""


async def read(request: Request, kind: type[M], limits: Limits) -> M:
    """The request's body as a `kind`.

    Raises:
        ApiError: wrong content type, too large, too slow, not JSON, or not what `kind` allows.
    """
    _check_content_type(request)
    try:
        async with asyncio.timeout(limits.body_s):
            body = await _read_bytes(request, limits.body_bytes)
    except TimeoutError:
        raise ApiError(
            say(
                zh=f"請求內容未在 {limits.body_s:g} 秒內送完。",
                en=f"The body did not arrive within {limits.body_s:g} s.",
            ),
            status=408,
            code="request_timeout",
        ) from None
    try:
        return kind.model_validate(read_object(body))
    except ValidationError as error:
        raise from_validation(error) from None


async def unless_gone(request: Request, work: Coroutine[Any, Any, T], limits: Limits) -> T:
    """The result of `work`, given up as soon as the client hangs up. The request's body must have been read.

    Raises:
        ApiError: the client is gone, so nobody will read this; or it took too long.
    """
    working = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(request))
    try:
        done, _ = await asyncio.wait((working, gone), timeout=limits.answer_s, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            raise too_slow(limits)
        if not working.done():
            raise ApiError("client disconnected", status=499, code="client_disconnected")
        return working.result()
    finally:
        working.cancel()
        gone.cancel()


def too_slow(limits: Limits) -> ApiError:
    """An answer that was not finished in time."""
    return ApiError(
        say(
            zh=f"回覆未在 {limits.answer_s:g} 秒內完成。請減少 'max_tokens'。",
            en=f"The answer was not finished within {limits.answer_s:g} s. Lower 'max_tokens'.",
        ),
        status=504,
        kind="server_error",
        code="timeout",
    )


def _check_content_type(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            say(
                zh=f"Content-Type 是 {kind!r}，必須是 'application/json'。",
                en=f"The Content-Type is {kind!r}; it must be 'application/json'.",
            ),
            status=415,
            code="unsupported_media_type",
        )


async def _read_bytes(request: Request, limit: int) -> bytes:
    """The body, or 413 when it is larger than allowed."""
    chunks, size = list[bytes](), 0
    declared = request.headers.get("content-length", "")
    excessive = declared.isdecimal() and int(declared[:20]) > DROPPED * limit
    if not excessive:
        async for chunk in request.stream():
            size += len(chunk)
            if size <= limit:
                chunks.append(chunk)
            elif size > DROPPED * limit:
                break
    if excessive or size > limit:
        raise ApiError(
            say(
                zh=f"請求內容超過 {limit:,} 位元組。請縮短。",
                en=f"The request body is larger than {limit:,} bytes. Shorten it.",
            ),
            status=413,
            code="request_too_large",
        )
    return b"".join(chunks)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
