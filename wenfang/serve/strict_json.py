"""JSON as the standard has it, and no more: what readers disagree about is refused instead of guessed."""

import json
import re
from typing import Any, NoReturn

from wenfang.core.keys_once import keys_once
from wenfang.core.language import say
from wenfang.serve.errors import ApiError

MAX_DEPTH = 64
"""Deeper than any request or schema that means something."""

_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`.

    Raises:
        ApiError: it is not UTF-8 or not JSON, not an object, nested too deeply, or holds a duplicate key, NaN or
            infinity, half of a surrogate pair, or a NUL character.
    """
    _check_depth(body)
    try:
        value = json.loads(body.decode(), object_pairs_hook=keys_once, parse_constant=_no_constant, parse_float=_number)
    except UnicodeDecodeError:
        raise _invalid(say(zh="不是 UTF-8", en="it is not UTF-8")) from None
    except (ValueError, RecursionError) as error:  # ValueError also for an integer of thousands of digits.
        raise _invalid(str(error)) from None
    if not isinstance(value, dict):
        raise _invalid(say(zh="必須是物件", en="it must be an object"))
    _check_text(value)
    return value


def read_arguments(text: str) -> dict[str, Any]:
    """What an earlier call was given, numbers as they stand: templates write them out again.

    Raises:
        ApiError: as `read_object`.
    """
    read_object(text.encode())
    arguments: dict[str, Any] = json.loads(text)
    return arguments


def _check_depth(body: bytes) -> None:
    depth = 0
    for match in _TOKENS.finditer(body):
        token = match[0]
        if token in (b"{", b"["):
            depth += 1
            if depth > MAX_DEPTH:
                raise _invalid(say(zh=f"巢狀超過 {MAX_DEPTH} 層", en=f"it is nested more than {MAX_DEPTH} deep"))
        elif token in (b"}", b"]"):
            depth -= 1


def _number(text: str) -> float:
    """2.0 is an integer, as JSON Schema has it."""
    value = float(text)
    return int(value) if value.is_integer() else value


def _no_constant(name: str) -> NoReturn:
    raise _invalid(say(zh=f"{name} 不是 JSON 的數字", en=f"{name} is not a JSON number"))


def _check_text(value: Any) -> None:
    """Refuse characters that no tokenizer or database can hold."""
    if isinstance(value, str):
        if "\0" in value:
            raise _invalid(say(zh="文字含 NUL 字元", en="a text holds a NUL character"))
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _invalid(say(zh="文字含半個代理對", en="a text holds half of a surrogate pair")) from None
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_text(key)
            _check_text(item)
    elif isinstance(value, list):
        for item in value:
            _check_text(item)


def _invalid(why: str) -> ApiError:
    message = say(zh=f"請求內容不是有效的 JSON：{why}。", en=f"The request body is not valid JSON: {why}.")
    return ApiError(message, code="invalid_json")
