"""What may be asked of a text, as values that can be compared, sent to another process and checked afterwards."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from wenfang.core.errors import InputError
from wenfang.core.language import say
from wenfang.grammar.base import JSON_STYLE, Grammar, check_length, quoted
from wenfang.grammar.notation import Choice, Lark, Regex
from wenfang.grammar.schema import examine_schema
from wenfang.grammar.validation import BrokenPromise, parse_json, validate_json


@dataclass(frozen=True)
class JsonSchema(Grammar):
    """JSON that a schema (draft 2020-12) accepts."""

    kind: ClassVar[str] = "json_schema"
    schema: str
    """The schema as JSON text."""

    def __post_init__(self) -> None:
        check_length(self.schema)

    @classmethod
    def of(cls, schema: object) -> Self:
        """From a parsed schema.

        Raises:
            InputError: it is no JSON.
        """
        try:
            return cls(json.dumps(schema, ensure_ascii=False, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(
                say(zh=f"綱要不是有效的 JSON：{error}。", en=f"The schema is not valid JSON: {error}.")
            ) from None

    def source(self) -> str:
        """The grammar in the language of llguidance."""
        from llguidance import LLMatcher

        return str(LLMatcher.grammar_from_json_schema(self._object, overrides=JSON_STYLE))

    @property
    def styled(self) -> dict[str, Any]:
        """The schema, and our style of JSON in llguidance's words: for another program that leaves it the work."""
        return {**json.loads(self._object), "x-guidance": JSON_STYLE}

    @property
    def _object(self) -> str:
        """The schema as an object, which alone can carry a style."""
        return {"true": "{}", "false": '{"enum": []}'}.get(self.schema, self.schema)

    def examine(self) -> None:
        """Refuse what could not be guaranteed.

        Raises:
            InputError: with the place.
        """
        examine_schema(self.schema)

    def check(self, text: str) -> None:
        """Validate with `jsonschema`.

        Raises:
            BrokenPromise: the schema does not accept it.
        """
        validate_json(text, self.schema)


@dataclass(frozen=True)
class JsonObject(Grammar):
    """Any JSON object."""

    kind: ClassVar[str] = "json_object"
    SCHEMA: ClassVar[str] = '{"type": "object"}'

    def source(self) -> str:
        """The grammar in the language of llguidance."""
        return JsonSchema(self.SCHEMA).source()

    def check(self, text: str) -> None:
        """Parse it.

        Raises:
            BrokenPromise: it is no JSON object.
        """
        if not isinstance(parse_json(text), dict):
            raise BrokenPromise(
                say(zh=f"生成的文字不是 JSON 物件：{text[:80]!r}。", en=f"The text is no JSON object: {text[:80]!r}.")
            )


@dataclass(frozen=True)
class ToolCalls(Grammar):
    """Calls of functions as a model's chat template writes them: a mark, a JSON object with name and arguments, a mark.

    Marks may be empty.
    """

    kind: ClassVar[str] = "tool_calls"
    functions: tuple[tuple[str, str], ...]
    """Names, each with the JSON Schema of its arguments as text."""
    opening: str
    closing: str
    arguments_key: str = "arguments"
    several: bool = False
    """Whether more than one call may be made."""
    free: bool = False
    """Whether text may come before the calls, or instead of them. It needs an opening mark to tell them apart."""
    otherwise: str | None = None
    """A JSON Schema, as text: what is written instead where no call is made. It needs an opening mark, too."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "functions", tuple((name, schema) for name, schema in self.functions))
        if not self.functions:
            raise InputError(say(zh="沒有可呼叫的工具。", en="There is no tool to call."))
        check_length("".join(name + schema for name, schema in self.functions) + (self.otherwise or ""))
        if (self.free or self.otherwise is not None) and not self.opening:
            raise InputError(
                say(
                    zh="這個模型的工具呼叫沒有開頭的記號，無法與文字區分；只能強制呼叫。",
                    en="This model puts no mark before its calls to tell them from text; they can only be forced.",
                )
            )

    def source(self) -> str:
        """The grammar in the language of llguidance."""
        from llguidance import LLMatcher

        return str(LLMatcher.grammar_from_lark(self.lark()))

    def lark(self) -> str:
        """The grammar in llguidance's notation of Lark's."""
        opening = f"{quoted(self.opening)} GAP" if self.opening else ""
        closing = f"GAP {quoted(self.closing)}" if self.closing else ""
        calls = [
            f"{quoted(self._head(name))} %json {self._styled(schema)} {quoted('}')}" for name, schema in self.functions
        ]
        more = "(GAP call)*" if self.several else ""
        instead = "" if self.otherwise is None else f"| %json {json.dumps(JsonSchema(self.otherwise).styled)}"
        rules = [
            f"start: text_and_mark GAP called {more} | TEXT |" if self.free else f"start: call {more} {instead}",
            f"call: {opening} called",
            f"called: function {closing}",
            f"function: {' | '.join(f'f{i}' for i in range(len(calls)))}",
            *(f"f{i}: {call}" for i, call in enumerate(calls)),
            r"GAP: /\n?/",
        ]
        if self.free:
            mark = re.escape(self.opening).replace("/", r"\/").replace("\\\n", r"\n")
            rules += [
                "text_and_mark[lazy]: TEXT_AND_MARK",
                rf"TEXT_AND_MARK: /(?s:.*){mark}/",
                rf"TEXT: /(?s:.+)/ & ~/(?s:.*){mark}(?s:.*)/",
            ]
        return "\n".join(rules)

    def examine(self) -> None:
        """Refuse arguments that could not be guaranteed.

        Raises:
            InputError: with the place.
        """
        for name, schema in self.functions:
            examine_schema(schema, place=f"{name}.parameters")
        if self.otherwise is not None:
            examine_schema(self.otherwise)

    def check(self, text: str) -> None:
        """Read the calls back and validate their arguments.

        Raises:
            BrokenPromise: a call cannot be read or its arguments do not fulfil their schema.
        """
        if self.otherwise is not None and not text.startswith(self.opening):
            validate_json(text, self.otherwise)
            return
        schemas, decoder, rest = dict(self.functions), json.JSONDecoder(), text
        if self.free:
            _, mark, rest = text.partition(self.opening)
            rest = mark + rest
        while rest:
            try:
                call, end = decoder.raw_decode(rest.removeprefix(self.opening).lstrip("\n"))
                name, arguments = call["name"], call[self.arguments_key]
                validate_json(json.dumps(arguments, ensure_ascii=False), schemas[name])
            except (ValueError, KeyError, TypeError, RecursionError):
                raise BrokenPromise(
                    say(zh=f"無法讀回工具呼叫：{rest[:80]!r}。", en=f"A tool call cannot be read back: {rest[:80]!r}.")
                ) from None
            rest = rest.removeprefix(self.opening).lstrip("\n")[end:].lstrip("\n")
            rest = rest.removeprefix(self.closing).lstrip("\n")

    def _head(self, name: str) -> str:
        return f'{{"name": {json.dumps(name, ensure_ascii=False)}, "{self.arguments_key}": '

    @staticmethod
    def _styled(schema: str) -> str:
        styled: dict[str, Any] = {**_object_schema(schema), "x-guidance": JSON_STYLE}
        return json.dumps(styled, ensure_ascii=False)


KINDS: Mapping[str, type[Grammar]] = {
    grammar.kind: grammar for grammar in (JsonSchema, JsonObject, Regex, Lark, Choice, ToolCalls)
}


def _object_schema(schema: str) -> dict[str, Any]:
    value = parse_json(schema)
    if not isinstance(value, dict):
        raise InputError(
            say(
                zh=f"工具參數的綱要必須是物件，不是 {schema[:40]!r}。",
                en=f"A tool's schema must be an object, not {schema[:40]!r}.",
            )
        )
    return {"type": "object", **value}
