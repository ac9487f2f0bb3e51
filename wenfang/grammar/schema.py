"""Which JSON Schemas can be guaranteed: every keyword is known, every reference local, every pattern checkable."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from wenfang.core.errors import InputError, nearest
from wenfang.core.keys_once import keys_once
from wenfang.core.language import say
from wenfang.grammar.validation import linear_match

MAX_DEPTH = 32
"""Deepest nesting of a schema; the compiler's own limit is 128 levels of JSON."""

FORMATS = ("date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
DIALECTS = ("https://json-schema.org/draft/2020-12/schema",)

_ANNOTATIONS = {
    "$schema", "$id", "$anchor", "$comment", "title", "description", "default", "examples", "deprecated", "readOnly",
    "writeOnly", "discriminator",
}  # fmt: skip
_ASSERTIONS = {
    "type", "enum", "const", "required", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
    "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties",
}  # fmt: skip
_ONE = ("items", "additionalProperties")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
KEYWORDS = {*_ANNOTATIONS, *_ASSERTIONS, *_ONE, *_LISTS, *_NAMED, "pattern", "format", "$ref"}

Place = tuple[str | int, ...]


def examine_schema(schema: str, *, place: str = "$") -> None:
    """Refuse a schema (JSON text) that cannot be guaranteed to the last keyword.

    Args:
        place: what to call its root.

    Raises:
        InputError: what is wrong and where.
    """
    try:
        value = json.loads(schema, object_pairs_hook=keys_once)
    except (ValueError, RecursionError) as error:
        raise InputError(
            say(zh=f"綱要不是有效的 JSON：{error}。", en=f"The schema is not valid JSON: {error}.")
        ) from None
    found = list(subschemas(value))
    _check_against_metaschema(value, place)
    for path, subschema in found:
        if isinstance(subschema, dict):
            _examine(path, subschema, place)


def subschemas(value: Any, path: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every schema within a schema with its path, outermost first.

    Raises:
        InputError: nested deeper than `MAX_DEPTH`.
    """
    if len(path) > 2 * MAX_DEPTH:
        raise refused(path, say(zh=f"巢狀超過 {MAX_DEPTH} 層", en=f"nested deeper than {MAX_DEPTH} schemas"))
    yield path, value
    if not isinstance(value, dict):
        return
    for key in _ONE:
        if key in value:
            yield from subschemas(value[key], (*path, key))
    for key in _LISTS:
        items = value.get(key)
        for i, item in enumerate(items if isinstance(items, list) else ()):
            yield from subschemas(item, (*path, key, i))
    for key in _NAMED:
        named = value.get(key)
        for name, item in (named if isinstance(named, dict) else {}).items():
            yield from subschemas(item, (*path, key, name))


def refused(path: Place, reason: str, place: str = "$") -> InputError:
    """The error for a fault at a place of a schema."""
    where = place + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return InputError(
        say(
            zh=f"綱要的 `{where[:200]}` 無法保證：{reason}。",
            en=f"The schema cannot be guaranteed at `{where[:200]}`: {reason}.",
        )
    )


def _examine(path: Place, schema: Mapping[str, Any], place: str) -> None:
    for key in schema:
        if key not in KEYWORDS:
            hint = nearest(key, KEYWORDS).rstrip("？")
            reason = say(zh=f"不支援關鍵字 {key!r}。{hint}", en=f"the keyword {key!r} is not supported. {hint}")
            raise refused(path, reason.rstrip("。. "), place)
    reference = schema.get("$ref")
    if isinstance(reference, str) and not reference.startswith("#"):
        reason = say(zh=f"不取用外部的 $ref {reference!r}", en=f"the remote $ref {reference!r} is never fetched")
        raise refused(path, reason, place)
    if "$id" in schema and path:
        raise refused(path, say(zh="只有根可以有 $id", en="only the root may have an $id"), place)
    if (dialect := schema.get("$schema", DIALECTS[0]).rstrip("#")) not in DIALECTS:
        reason = say(zh=f"不認得 $schema {dialect!r}", en=f"the $schema {dialect!r} is not known; use {DIALECTS[0]}")
        raise refused(path, reason, place)
    if (kind := schema.get("format", FORMATS[0])) not in FORMATS:
        reason = say(zh=f"不支援 format {kind!r}", en=f"the format {kind!r} is not supported")
        raise refused(path, reason, place)
    if schema.get("minProperties", 0) > 1 and schema.get("additionalProperties", True) is not False:
        # A key may come twice, which counts once.
        reason = say(
            zh="minProperties 大於 1 時，additionalProperties 必須是 false",
            en="with minProperties above 1, additionalProperties must be false",
        )
        raise refused(path, reason, place)
    for pattern in (*([schema["pattern"]] if "pattern" in schema else []), *schema.get("patternProperties", ())):
        _check_pattern(path, pattern, place)


def _check_pattern(path: Place, pattern: object, place: str) -> None:
    try:
        linear_match(str(pattern), "")
    except ValueError as error:
        reason = say(
            zh=f"無法驗證 pattern {pattern!r}（{error}）", en=f"the pattern {pattern!r} cannot be validated ({error})"
        )
        raise refused(path, reason, place) from None


def _check_against_metaschema(schema: Any, place: str) -> None:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        reason = say(zh=f"綱要無效，{error.message[:200]}", en=f"the schema is invalid, {error.message[:200]}")
        raise refused(tuple(error.absolute_path), reason, place) from None
    except RecursionError:
        raise refused((), say(zh="巢狀太深", en="nested too deeply"), place) from None
