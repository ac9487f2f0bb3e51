"""The second opinion on finished JSON: `jsonschema`, with exact decimals and regular expressions in linear time."""

import json
from collections.abc import Iterator, Mapping
from decimal import Decimal, DecimalException, InvalidOperation
from functools import lru_cache
from typing import Any

from wenfang.core.errors import WenfangError
from wenfang.core.language import say


class BrokenPromise(WenfangError):
    """A finished text does not fulfil its grammar."""


def parse_json(text: str) -> Any:
    """A JSON text, its fractions as exact decimals: 0.3 is a multiple of 0.1.

    Raises:
        BrokenPromise: it is none, or nested too deeply to read.
    """
    try:
        return json.loads(text, parse_float=_exact)
    except (ValueError, RecursionError) as error:
        raise BrokenPromise(
            say(zh=f"生成的文字無法當 JSON 讀：{error}。", en=f"The text cannot be read as JSON: {error}.")
        ) from None


def validate_json(text: str, schema: str) -> None:
    """Refuse a text that is no JSON or that the schema (JSON text) does not accept.

    Raises:
        BrokenPromise: with the place in the text.
    """
    from jsonschema.exceptions import ValidationError

    value = parse_json(text)
    try:
        _validator(schema).validate(value)
    except ValidationError as error:
        found = say(zh=f"{error.json_path} 處{error.message[:200]}", en=f"at {error.json_path}: {error.message[:200]}")
    except (RecursionError, DecimalException) as error:
        found = say(zh=f"無法驗證（{type(error).__name__}）", en=f"it cannot be validated ({type(error).__name__})")
    else:
        return
    raise BrokenPromise(
        say(zh=f"生成的 JSON 不符合綱要：{found}。", en=f"The JSON does not fulfil its schema: {found}.")
    )


def linear_match(pattern: str, text: str) -> bool:
    """Whether a regular expression matches somewhere, in time linear in the text: Python's own may take for ever.

    Raises:
        ValueError: RE2 does not know the expression.
    """
    import pyarrow
    import pyarrow.compute

    found = pyarrow.compute.match_substring_regex(pyarrow.array([text]), pattern)
    return bool(found[0].as_py())


def _exact(number: str) -> Decimal | float:
    """A fraction as written; an exponent too large for any decimal is infinite or nothing."""
    try:
        return Decimal(number)
    except InvalidOperation:
        return float(number)


@lru_cache(maxsize=64)
def _validator(schema: str) -> Any:
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend
    from referencing import Registry

    kind = extend(Draft202012Validator, {"pattern": _pattern, "patternProperties": _pattern_properties})
    # An empty registry: a schema names nothing that would have to be fetched.
    return kind(parse_json(schema), format_checker=Draft202012Validator.FORMAT_CHECKER, registry=Registry())


def _pattern(validator: Any, pattern: str, value: object, schema: Mapping[str, Any]) -> Iterator[Any]:
    from jsonschema.exceptions import ValidationError

    if isinstance(value, str) and not linear_match(pattern, value):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: Mapping[str, Any], value: object, schema: Any) -> Iterator[Any]:
    for pattern, subschema in patterns.items():
        for name, item in value.items() if isinstance(value, dict) else ():
            if linear_match(pattern, name):
                yield from validator.descend(item, subschema, path=name, schema_path=pattern)
