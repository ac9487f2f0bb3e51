"""Reading a request: its bytes within limits, its JSON, its typed form; and noticing when the client has left."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

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
        ApiError: wrong content type or encoding, too large, too slow, not JSON, or not what `kind` allows.
    """
    _check_encoding(request)
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
        asked = read_object(body)
        return kind.model_validate(asked)
    except ValidationError as error:
        raise from_validation(error, asked) from None


def check_query(request: Request) -> None:
    """Refuse parameters behind the address's question mark: a request says everything in its body.

    Raises:
        ApiError: the first one.
    """
    if (name := next(iter(request.query_params), None)) is not None:
        name = name[:200]
        raise ApiError(
            say(
                zh=f"不支援網址裡的參數 {name!r}。請移除，或寫在 JSON 內容裡。",
                en=f"Unsupported query parameter: {name!r} in the address is not read. "
                "Remove it, or put it into the JSON body.",
            ),
            param=name,
            code="unsupported_parameter",
        )


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
            raise _gone()
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


def _check_encoding(request: Request) -> None:
    """JSON in UTF-8 is all that is read, and nothing compressed."""
    kind, *details = (part.strip().lower() for part in request.headers.get("content-type", "").split(";"))
    if kind != "application/json":
        raise _unreadable("Content-Type", kind, "application/json")
    for name, _, value in (detail.partition("=") for detail in details):
        if name.strip() == "charset" and value.strip().strip('"') not in ("utf-8", "utf8"):
            raise _unreadable("Content-Type", f"charset={value.strip()}", "charset=utf-8")
    encoding = ", ".join(request.headers.getlist("content-encoding")).strip().lower()
    if encoding not in ("", "identity"):
        raise _unreadable("Content-Encoding", encoding, "identity")


def _unreadable(header: str, given: str, wanted: str) -> ApiError:
    return ApiError(
        say(
            zh=f"{header} 是 {given[:200]!r}，必須是 {wanted!r}。",
            en=f"The {header} is {given[:200]!r}; it must be {wanted!r}.",
        ),
        status=415,
        code="unsupported_media_type",
    )


async def _read_bytes(request: Request, limit: int) -> bytes:
    """The body; ApiError when it is larger than allowed, or its sender leaves."""
    chunks, size = list[bytes](), 0
    declared = request.headers.get("content-length", "")
    excessive = declared.isdecimal() and int(declared[:20]) > DROPPED * limit
    if not excessive:
        try:
            async for chunk in request.stream():
                size += len(chunk)
                if size <= limit:
                    chunks.append(chunk)
                elif size > DROPPED * limit:
                    break
        except ClientDisconnect:
            raise _gone() from None
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


def _gone() -> ApiError:
    """Nobody is left to read this."""
    return ApiError("client disconnected", status=499, code="client_disconnected")


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
