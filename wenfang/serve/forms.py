"""What form a request demands of the answer: a response format and forced tool calls as grammars."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, JsonValue

from wenfang.core.errors import InputError
from wenfang.core.language import say
from wenfang.serve.errors import ApiError
from wenfang.serve.sampling import Strict
from wenfang.serve.toolcalls import ToolFormat

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
            raise _wrong(
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

    def grammar(self, param: str) -> "Grammar":
        """The same for the engine.

        Raises:
            ApiError: a call could not be told from text.
        """
        from wenfang.grammar import ToolCalls

        schemas = ((name, json.dumps(schema, ensure_ascii=False)) for name, schema in self.functions.items())
        try:
            return ToolCalls(
                tuple(schemas), self.opening, self.closing, self.arguments_key, several=self.several, free=self.free
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
            raise _wrong(
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


def forces_call(choice: ToolChoice) -> bool:
    """Whether the answer must be a tool call."""
    return choice not in ("none", "auto")


def check_demands(choice: ToolChoice, *, tools: bool, form: bool, param: str) -> None:
    """Refuse a forced call without a tool, or beside another form.

    Args:
        tools: whether there are any.
        form: whether the answer must have a form.
        param: where the request holds that form.

    Raises:
        ApiError: by the parameter that is too much.
    """
    if forces_call(choice) and form:
        raise _wrong(param, zh="不能與強制的工具呼叫一起使用", en="it excludes a forced tool call")
    if forces_call(choice) and not tools:
        raise _wrong("tool_choice", zh="沒有 'tools' 可呼叫", en="there are no 'tools' to call")


def call_grammar(
    tools: list[dict[str, Any]], strict: Sequence[bool], choice: ToolChoice, form: ToolFormat | None, *, several: bool
) -> "Grammar | None":
    """Calls of the tools, or one of the chosen one, in the model's own words; None where nothing holds them to a form.

    Args:
        strict: of each tool, whether its calls are held to its schema even where none is forced.
        several: whether more than one tool may be called.

    Raises:
        ApiError: the chosen tool is not among them, or the schemas cannot be used.
    """
    from wenfang.grammar import ToolCalls

    forced = forces_call(choice)
    if form is None or not (forced or any(strict)):
        return None
    held = [forced or one for one in strict]
    functions = [{"parameters": {}, **tool["function"]} for tool in tools]
    functions = [one if hold else {**one, "parameters": {}} for one, hold in zip(functions, held, strict=True)]
    if not isinstance(choice, str):
        functions = [function for function in functions if function["name"] == choice.called]
        several = False
    if not functions:
        raise _wrong("tool_choice", zh="'tools' 裡沒有這個工具", en="there is no such tool in 'tools'")
    schemas = tuple((f["name"], json.dumps(f["parameters"], ensure_ascii=False)) for f in functions)
    try:
        return ToolCalls(schemas, form.opening, form.closing, form.arguments_key, several=several, free=not forced)
    except InputError as error:
        raise ApiError(str(error), param="tools", code="invalid_value") from None


def _wrong(param: str, *, zh: str, en: str) -> ApiError:
    return ApiError(
        say(zh=f"參數 {param!r} 無效：{zh}。", en=f"Invalid value for {param!r}: {en}."),
        param=param,
        code="invalid_value",
    )
