"""Errors as OpenAI's clients expect them: an HTTP status and `{"error": {"message", "type", "param", "code"}}`."""

from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException

from wenfang.core.errors import InputError, WenfangError
from wenfang.core.language import say

MAX_PROBLEMS = 1000
"""How many problems of one body are looked at: a long list may have one for each of its items."""


class EngineFailure(WenfangError):
    """The engine raised something that is nobody's input: a defect, or a machine out of memory."""


class Overloaded(WenfangError):
    """More is asked for at once than the server takes on."""


class ApiError(WenfangError):
    """An answer other than 2xx.

    Args:
        message: what was wrong and what to do.
        status: the HTTP status.
        kind: OpenAI's `type`, such as `invalid_request_error`.
        param: the parameter at fault, such as `messages[0].content`.
        code: OpenAI's machine-readable code, such as `context_length_exceeded`.
        retry_after_s: when it is worth trying again.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}

    def body(self) -> dict[str, Any]:
        """The JSON body of the response."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}


def as_api_error(error: Exception) -> ApiError:
    """Any error in OpenAI's terms."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        return ApiError(str(error.detail), status=error.status_code)
    if isinstance(error, Overloaded):
        return ApiError(str(error), status=503, kind="server_error", code="overloaded", retry_after_s=1)
    if isinstance(error, InputError):
        return ApiError(str(error), code="invalid_value")
    return ApiError(str(error), status=500, kind="server_error", code="engine_failure")


def unsupported(param: str) -> ApiError:
    """A parameter this server would have to ignore: refused instead, so that nobody relies on it."""
    return ApiError(
        say(
            zh=f"不支援參數 {param!r}。請移除後再試。",
            en=f"Unsupported parameter: {param!r} is not supported by this server. Remove it and try again.",
        ),
        param=param,
        code="unsupported_parameter",
    )


def wrong(param: str, *, zh: str, en: str) -> ApiError:
    """A parameter that cannot be as it is."""
    message = say(zh=f"參數 {param!r} 無效：{zh}。", en=f"Invalid value for {param!r}: {en}.")
    return ApiError(message, param=param, code="invalid_value")


def from_validation(error: ValidationError, body: dict[str, Any]) -> ApiError:
    """The first problem pydantic found, named by its path in the request; where a value could have been of several
    types, by the place that the nearest of them did not accept."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)[:MAX_PROBLEMS]
    places = [_place(problem, body) for problem in problems]
    deepest = max((place for place in places if place[: len(places[0])] == places[0]), key=len)
    found = [problem for problem, place in zip(problems, places, strict=True) if place == deepest]
    kind, param = found[0]["type"], path_of(deepest)
    if kind == "extra_forbidden":
        return unsupported(param)
    if kind == "missing":
        return ApiError(
            say(zh=f"缺少必要參數 {param!r}。", en=f"Missing required parameter: {param!r}."),
            param=param,
            code="missing_required_parameter",
        )
    reasons = (one["msg"].removeprefix("Value error, ") for one in found if one["type"] != "extra_forbidden")
    message = " / ".join(dict.fromkeys(reason.partition(" or instance of ")[0] for reason in reasons))
    return ApiError(
        say(zh=f"參數 {param!r} 無效：{message}", en=f"Invalid value for {param!r}: {message}"),
        param=param or None,
        code="invalid_value",
    )


def _place(problem: ErrorDetails, body: dict[str, Any]) -> tuple[int | str, ...]:
    """Where in the body a problem is: its location without the names of types that pydantic tried."""
    place: list[int | str] = []
    value: Any = body
    for depth, part in enumerate(problem["loc"], start=1):
        known = isinstance(value, list) if isinstance(part, int) else isinstance(value, dict) and part in value
        if known:
            value = value[part]
        elif problem["type"] != "missing" or depth < len(problem["loc"]):
            continue
        place.append(part)
    return tuple(place)


def path_of(location: tuple[int | str, ...]) -> str:
    """`("messages", 0, "content")` as `messages[0].content`."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path
