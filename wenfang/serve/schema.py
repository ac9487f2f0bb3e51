"""What a chat request may say. What is not listed here is refused by name, never dropped in silence."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue, model_validator

from wenfang.core.language import say
from wenfang.serve.demands import Demands
from wenfang.serve.errors import ApiError, unsupported, wrong
from wenfang.serve.forms import ChosenTool, ResponseFormat
from wenfang.serve.sampling import MAX_CHOICES, MAX_TOKENS, Sampling, Strict, without_nulls
from wenfang.serve.strict_json import read_arguments

MAX_MESSAGES = 4096
MAX_TOOLS = 128

ASKS_FOR_NOTHING: dict[str, tuple[object, ...]] = {
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "functions": ([],),
}
"""Values of unsupported parameters that change nothing, which some clients always send."""


def _joined_text(content: Any) -> Any:
    """A list of text parts as one string; any other value is left to the type check."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError(
                say(
                    zh='這個模型只讀文字；每個部分應為 {"type": "text", "text": …}。',
                    en='this model reads text only; each part must be {"type": "text", "text": …}.',
                )
            )
        texts.append(part["text"])
    return "".join(texts)


class Function(Strict):
    """A function the model may call."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str = ""
    parameters: dict[str, JsonValue] = Field({})
    """JSON Schema of its arguments."""
    strict: bool = False
    """Arguments are held to the schema; where a call is forced they are in any case."""


class Tool(Strict):
    """A tool in OpenAI's form."""

    type: Literal["function"]
    function: Function

    def shown(self) -> dict[str, Any]:
        """As chat templates expect it."""
        function = self.function.model_dump(include={"name", "description", "parameters"})
        return {"type": "function", "function": function}


class CalledFunction(Strict):
    """What an earlier turn of the assistant called."""

    name: str = Field(min_length=1)
    arguments: str
    """A JSON object, as text."""


class ToolCall(Strict):
    """A call in an earlier turn of the assistant."""

    id: str = Field(min_length=1)
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None

    def shown(self, param: str) -> dict[str, Any]:
        """As chat templates expect it, the arguments as an object.

        Raises:
            ApiError: the arguments are no JSON object.
        """
        try:
            arguments = read_arguments(self.function.arguments)
        except ApiError:
            raise wrong(
                f"{param}.function.arguments",
                zh="必須是 JSON 物件的文字",
                en="it must be the text of a JSON object",
            ) from None
        return {"type": "function", "id": self.id, "function": {"name": self.function.name, "arguments": arguments}}


class TextPart(Strict):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        str | None, BeforeValidator(_joined_text, json_schema_input_type=str | list[TextPart] | None)
    ] = None
    """Text, or a list of text parts."""
    tool_calls: list[ToolCall] = Field([], max_length=MAX_TOOLS)
    tool_call_id: str | None = None


class StreamOptions(Strict):
    """Options that only make sense for a stream."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class ChatRequest(Sampling):
    """The body of `POST /v1/chat/completions`."""

    model: str
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    """OpenAI's newer name for `max_tokens`."""
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[Tool] = Field([], max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | ChosenTool = "auto"
    """`required`, or a tool by its name: the answer is a call, held to the tool's schema."""
    parallel_tool_calls: bool = True
    """If false, the answer ends with its first call."""
    response_format: ResponseFormat | None = None
    """Beside `tools` it may be JSON only: the answer is that, or calls."""
    user: str | None = None
    """Who asks, for the caller's own records. It never changes an answer."""

    @model_validator(mode="before")
    @classmethod
    def _drop_idle(cls, data: Any) -> Any:
        return drop_idle(data, ASKS_FOR_NOTHING)

    def check(self) -> None:
        """Refuse what only shows when the parts are seen together.

        Raises:
            ApiError: two parameters that contradict each other, or messages that do not follow from one another.
        """
        if self.stream_options is not None and not self.stream:
            raise wrong("stream_options", zh="只能與 'stream': true 一起使用", en="it needs 'stream': true")
        if self.top_logprobs is not None and not self.logprobs:
            raise wrong("top_logprobs", zh="只能與 'logprobs': true 一起使用", en="it needs 'logprobs': true")
        self.demands.check()
        check_messages(self.messages)

    @property
    def demands(self) -> Demands:
        """What the answer must be."""
        strict = [tool.function.strict for tool in self.tools]
        several, form = self.parallel_tool_calls, self.response_format
        return Demands(self.shown_tools(), strict, self.tool_choice, several=several, form=form)

    @property
    def limit(self) -> int | None:
        """The most tokens to generate for each choice; None lets it run to the end of the context."""
        limits = [m for m in (self.max_completion_tokens, self.max_tokens) if m is not None]
        return min(limits) if limits else None

    def conversation(self) -> list[dict[str, Any]]:
        """The messages as chat templates expect them."""
        return [shown_message(message, f"messages[{i}]") for i, message in enumerate(self.messages)]

    def shown_tools(self) -> list[dict[str, Any]]:
        """The tools that the model may call, as chat templates expect them."""
        return [] if self.tool_choice == "none" else [tool.shown() for tool in self.tools]


def drop_idle(data: Any, idle: dict[str, tuple[object, ...]]) -> Any:
    """The same without unsupported parameters that change nothing.

    Raises:
        ApiError: an unsupported parameter that would change something.
    """
    if not isinstance(data, dict):
        return data
    for name, values in idle.items():
        value = data.get(name)
        if value is not None and not any(type(value) is type(v) and value == v for v in values):
            raise unsupported(name)
    return {name: value for name, value in without_nulls(data).items() if name not in idle}


def check_messages(messages: list[Message]) -> None:
    """Refuse turns without content and results of calls that nobody made.

    Raises:
        ApiError: the first such message, by its path.
    """
    called: set[str] = set()
    for i, message in enumerate(messages):
        path = f"messages[{i}]"
        if message.tool_calls and message.role != "assistant":
            raise wrong(f"{path}.tool_calls", zh="只有助理能呼叫工具", en="only the assistant calls tools")
        called |= {call.id for call in message.tool_calls}
        if (message.tool_call_id is None) == (message.role == "tool"):
            raise wrong(
                f"{path}.tool_call_id", zh="工具的結果才有，也一定要有", en="a tool's result has one, and nothing else"
            )
        if message.tool_call_id is not None and message.tool_call_id not in called:
            raise wrong(f"{path}.tool_call_id", zh="先前沒有這個呼叫", en="there is no such call before it")
        if message.content is None and not message.tool_calls:
            raise wrong(f"{path}.content", zh="不能沒有內容", en="it must be text, and is missing or null")


def shown_message(message: Message, path: str) -> dict[str, Any]:
    """A message as chat templates expect it.

    Raises:
        ApiError: a call's arguments are no JSON object.
    """
    role = "system" if message.role == "developer" else message.role
    shown: dict[str, Any] = {"role": role, "content": message.content}
    if message.tool_calls:
        calls = [call.shown(f"{path}.tool_calls[{i}]") for i, call in enumerate(message.tool_calls)]
        shown = {"role": role, "content": message.content or "", "tool_calls": calls}
    if message.tool_call_id is not None:
        shown["tool_call_id"] = message.tool_call_id
    return shown
