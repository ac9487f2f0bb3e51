"""What form a text may be asked to have, and which tool must be called."""

import json
from typing import TYPE_CHECKING, Literal

from pydantic import Field, JsonValue

from wenfang.core.errors import InputError
from wenfang.serve.errors import ApiError, wrong
from wenfang.serve.sampling import Strict

if TYPE_CHECKING:
    from wenfang.grammar import Grammar


class NamedSchema(Strict):
    """A JSON Schema in OpenAI's wrapping."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str = ""
    schema_: bool | dict[str, JsonValue] = Field({}, alias="schema")
    strict: bool = True
    """Schemas are always kept strictly, even when this is false."""


class ResponseFormat(Strict):
    """What the answer must be; `regex`, `lark` and `choice` go beyond OpenAI's interface."""

    type: Literal["text", "json_object", "json_schema", "regex", "lark", "choice"]
    json_schema: NamedSchema | None = None
    regex: str | None = None
    lark: str | None = None
    choice: list[str] | None = Field(default=None, min_length=1)

    def grammar(self, param: str) -> "Grammar | None":
        """The same for the engine.

        Args:
            param: where the request holds it.

        Raises:
            ApiError: the part that the type names is missing, or there is another one.
        """
        from wenfang.grammar import Choice, JsonObject, JsonSchema, Lark, Regex

        given = {name for name in ("json_schema", "regex", "lark", "choice") if getattr(self, name) is not None}
        if given != ({self.type} - {"text", "json_object"}):
            raise wrong(
                param,
                zh=f"type 是 {self.type!r}，給的卻是 {sorted(given)}",
                en=f"its type is {self.type!r}, but it holds {sorted(given)}",
            )
        try:
            if self.json_schema is not None:
                return JsonSchema.of(self.json_schema.schema_)
            if self.regex is not None:
                return Regex(self.regex)
            if self.lark is not None:
                return Lark(self.lark)
            if self.choice is not None:
                return Choice(tuple(self.choice))
        except InputError as error:
            raise ApiError(str(error), param=param, code="invalid_value") from None
        return JsonObject() if self.type == "json_object" else None


class Calls(Strict):
    """Calls of functions as a model's chat template writes them."""

    functions: dict[str, dict[str, JsonValue]] = Field(min_length=1)
    """JSON Schemas of the arguments, by the functions' names."""
    opening: str
    """The mark before a call's JSON object; it may be empty."""
    closing: str
    arguments_key: str = "arguments"
    several: bool = False
    free: bool = False
    """Whether text may come before the calls, or instead of them."""
    otherwise: bool | dict[str, JsonValue] | None = None
    """A JSON Schema of what is written instead where no call is made."""

    def grammar(self, param: str) -> "Grammar":
        """The same for the engine.

        Raises:
            ApiError: a call could not be told from text.
        """
        from wenfang.grammar import ToolCalls

        schemas = ((name, json.dumps(schema, ensure_ascii=False)) for name, schema in self.functions.items())
        try:
            return ToolCalls(
                tuple(schemas),
                self.opening,
                self.closing,
                self.arguments_key,
                several=self.several,
                free=self.free,
                otherwise=None if self.otherwise is None else json.dumps(self.otherwise, ensure_ascii=False),
            )
        except InputError as error:
            raise ApiError(str(error), param=param, code="invalid_value") from None


class StructuredOutputs(Strict):
    """What a text completion must be, in vLLM's words: one of these."""

    json_: bool | dict[str, JsonValue] | None = Field(None, alias="json")
    """A JSON Schema."""
    json_object: Literal[True] | None = None
    regex: str | None = None
    choice: list[str] | None = Field(default=None, min_length=1)
    grammar: str | None = None
    """A Lark grammar."""
    tool_calls: Calls | None = None
    """Our own: calls of functions."""

    def demanded(self, param: str) -> "Grammar | None":
        """The same for the engine.

        Args:
            param: where the request holds it.

        Raises:
            ApiError: it holds nothing, or several, or what it holds cannot be used.
        """
        given = self.model_dump(exclude_none=True, by_alias=True)
        if len(given) != 1:
            raise wrong(
                param,
                zh=f"要恰好一項，而不是 {sorted(given)}",
                en=f"it must hold exactly one demand, not {sorted(given)}",
            )
        return (self.tool_calls or self._shown()).grammar(param)

    def _shown(self) -> ResponseFormat:
        """As a chat completion's `response_format`."""
        if self.json_ is not None:
            return ResponseFormat(type="json_schema", json_schema=NamedSchema(name="text", schema=self.json_))
        if self.grammar is not None:
            return ResponseFormat(type="lark", lark=self.grammar)
        if self.regex is not None:
            return ResponseFormat(type="regex", regex=self.regex)
        if self.choice is not None:
            return ResponseFormat(type="choice", choice=self.choice)
        return ResponseFormat(type="json_object")


class ChosenFunction(Strict):
    """The name of a function."""

    name: str


class ChosenTool(Strict):
    """A tool that must be called."""

    type: Literal["function"]
    function: ChosenFunction

    @property
    def called(self) -> str:
        """The function's name."""
        return self.function.name


class FlatChosenTool(Strict):
    """A tool that must be called, as the Responses interface writes it."""

    type: Literal["function"]
    name: str

    @property
    def called(self) -> str:
        """The function's name."""
        return self.name


ToolChoice = str | ChosenTool | FlatChosenTool
"""`none`, `auto`, `required` or a tool."""
