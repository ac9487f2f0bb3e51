"""OpenAI's Responses interface without memory: what a request may say."""

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, model_validator

from wenfang.serve.demands import Demands
from wenfang.serve.errors import ApiError
from wenfang.serve.forms import FlatChosenTool, NamedSchema, ResponseFormat
from wenfang.serve.sampling import MAX_TOKENS, Sampling, Strict
from wenfang.serve.schema import MAX_MESSAGES, MAX_TOOLS, drop_idle
from wenfang.serve.strict_json import read_arguments

IDLE: dict[str, tuple[object, ...]] = {
    "background": (False,),
    "include": ([],),
    "service_tier": ("auto", "default"),
    "store": (False,),
}


class TextPart(Strict):
    """A piece of text in a message."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[JsonValue] = Field([], max_length=0)
    logprobs: list[JsonValue] = Field([], max_length=0)


class InputMessage(Strict):
    """A turn."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    id: str | None = None
    status: str | None = None

    def shown(self) -> dict[str, Any]:
        """As chat templates expect it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class FunctionCall(Strict):
    """A call that the model made earlier."""

    type: Literal["function_call"]
    call_id: str = Field(min_length=1)
    name: str = Field(min_length=1)
    arguments: str
    id: str | None = None
    status: str | None = None


class FunctionOutput(Strict):
    """What the call gave."""

    type: Literal["function_call_output"]
    call_id: str = Field(min_length=1)
    output: str
    id: str | None = None
    status: str | None = None


class FlatTool(Strict):
    """A function the model may call."""

    type: Literal["function"]
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str = ""
    parameters: dict[str, JsonValue] = Field({})
    strict: bool = False
    """Arguments are held to the schema; where a call is forced they are in any case."""

    def shown(self) -> dict[str, Any]:
        """As chat templates expect it."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


class SchemaFormat(NamedSchema):
    """JSON that a schema accepts."""

    type: Literal["json_schema"]


class PlainFormat(Strict):
    """Any text, or any JSON object."""

    type: Literal["text", "json_object"]


class TextOptions(Strict):
    """What the text must be."""

    format: Annotated[SchemaFormat | PlainFormat, Field(discriminator="type")] = PlainFormat(type="text")

    def shown(self) -> ResponseFormat:
        """As a chat completion's `response_format`."""
        if isinstance(self.format, PlainFormat):
            return ResponseFormat(type=self.format.type)
        schema = NamedSchema.model_validate(self.format.model_dump(by_alias=True, exclude={"type"}))
        return ResponseFormat(type="json_schema", json_schema=schema)


Item = InputMessage | FunctionCall | FunctionOutput


class ResponsesRequest(Sampling):
    """The body of `POST /v1/responses`. Nothing is stored, so there is no `previous_response_id`."""

    model: str
    input: str | Annotated[list[Item], Field(min_length=1, max_length=MAX_MESSAGES)]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    stream: bool = False
    tools: list[FlatTool] = Field([], max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | FlatChosenTool = "auto"
    """`required`, or a tool by its name: the output is a call, held to the tool's schema."""
    parallel_tool_calls: bool = True
    """If false, the response ends with its first call."""
    text: TextOptions = TextOptions()
    truncation: Literal["auto", "disabled"] = "disabled"
    """`auto` leaves out the oldest turns of a conversation that is too long."""
    metadata: dict[str, str] = Field({}, max_length=16)
    user: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_idle(cls, data: Any) -> Any:
        return drop_idle(data, IDLE)

    def check(self) -> None:
        """Refuse what only shows when the parts are seen together.

        Raises:
            ApiError: parameters that contradict each other.
        """
        self.demands.check()

    @property
    def demands(self) -> Demands:
        """What the output must be."""
        return Demands(
            self.shown_tools(),
            [tool.strict for tool in self.tools],
            self.tool_choice,
            several=self.parallel_tool_calls,
            form=self.text.shown(),
            param="text.format",
        )

    def shown_tools(self) -> list[dict[str, Any]]:
        """The tools that the model may call, as chat templates expect them."""
        return [] if self.tool_choice == "none" else [tool.shown() for tool in self.tools]

    def conversation(self) -> list[dict[str, Any]]:
        """The input as messages. Calls that follow one another belong to one turn.

        Raises:
            ApiError: arguments that are no JSON object, or the output of a call that nobody made.
        """
        messages = list[dict[str, Any]]()
        if self.instructions is not None:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*messages, {"role": "user", "content": self.input}]
        called = set[str]()
        for i, item in enumerate(self.input):
            if isinstance(item, InputMessage):
                messages.append(item.shown())
            elif isinstance(item, FunctionCall):
                called.add(item.call_id)
                _add_call(messages, item, i)
            elif item.call_id in called:
                messages.append({"role": "tool", "content": item.output, "tool_call_id": item.call_id})
            else:
                raise ApiError(
                    f"Invalid value for 'input[{i}].call_id': there is no such call before it.",
                    param=f"input[{i}].call_id",
                    code="invalid_value",
                )
        return messages


def _add_call(messages: list[dict[str, Any]], item: FunctionCall, i: int) -> None:
    try:
        arguments = read_arguments(item.arguments)
    except ApiError:
        raise ApiError(
            f"Invalid value for 'input[{i}].arguments': it must be the text of a JSON object.",
            param=f"input[{i}].arguments",
            code="invalid_value",
        ) from None
    call = {"type": "function", "id": item.call_id, "function": {"name": item.name, "arguments": arguments}}
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    messages[-1].setdefault("tool_calls", []).append(call)
