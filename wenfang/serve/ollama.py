"""What Ollama's interface may ask, and its objects for the answer, for local tools that speak it."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, JsonValue

from wenfang.core.openai import MAX_TEMPERATURE
from wenfang.serve.chat_answer import Turn
from wenfang.serve.errors import wrong
from wenfang.serve.models import Served
from wenfang.serve.respond import Event, Usage, compact
from wenfang.serve.sampling import MAX_STOPS, MAX_TOKENS, Sampling, Stops, Strict
from wenfang.serve.schema import MAX_MESSAGES, MAX_TOOLS, Tool
from wenfang.serve.toolcalls import ToolFormat

if TYPE_CHECKING:
    from wenfang.engine import Delta


class Options(Strict):
    """Ollama's names for the sampling parameters that the engine has too."""

    temperature: float = Field(1.0, ge=0, le=MAX_TEMPERATURE)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int | None = Field(None, ge=1, lt=2**31)
    min_p: float = Field(0.0, ge=0, le=1)
    typical_p: float = Field(1.0, gt=0, le=1)
    repeat_penalty: float = Field(1.0, ge=0.01, le=100)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    seed: int | None = Field(None, ge=0, lt=2**63 - 16)
    num_predict: int | None = Field(None, ge=1, le=MAX_TOKENS)
    stop: Stops = Field([], max_length=MAX_STOPS)

    def sampling(self) -> Sampling:
        """In the engine's names."""
        values = self.model_dump(exclude_unset=True, exclude={"num_predict", "repeat_penalty"})
        if "repeat_penalty" in self.model_fields_set:
            values["repetition_penalty"] = self.repeat_penalty
        return Sampling.model_validate(values)


class OllamaFunction(Strict):
    """A call in an earlier turn."""

    name: str = Field(min_length=1)
    arguments: dict[str, JsonValue]


class OllamaCall(Strict):
    """A call in an earlier turn."""

    function: OllamaFunction


class OllamaMessage(Strict):
    """One turn."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    tool_calls: list[OllamaCall] = Field([], max_length=MAX_TOOLS)
    tool_name: str | None = None

    def shown(self, number: int) -> dict[str, Any]:
        """As chat templates expect it."""
        shown: dict[str, Any] = {"role": self.role, "content": self.content or ""}
        if self.tool_calls:
            shown["tool_calls"] = [
                {"type": "function", "id": f"call_{number}_{i}", "function": call.function.model_dump()}
                for i, call in enumerate(self.tool_calls)
            ]
        if self.role == "tool":
            shown["tool_call_id"] = self.tool_name or ""
        return shown


def check_turns(messages: list[OllamaMessage]) -> None:
    """Refuse turns without content and results of calls that nobody made.

    Raises:
        ApiError: the first such message, by its path.
    """
    called: set[str] = set()
    for i, message in enumerate(messages):
        path = f"messages[{i}]"
        if message.tool_calls and message.role != "assistant":
            raise wrong(f"{path}.tool_calls", zh="只有助理能呼叫工具", en="only the assistant calls tools")
        called |= {call.function.name for call in message.tool_calls}
        if message.tool_name is not None and message.role != "tool":
            raise wrong(f"{path}.tool_name", zh="工具的結果才有", en="only a tool's result has one")
        if message.role == "tool" and (message.tool_name not in called if message.tool_name else not called):
            raise wrong(f"{path}.tool_name", zh="先前沒有這個呼叫", en="there is no such call before it")
        if message.content is None and not message.tool_calls:
            raise wrong(f"{path}.content", zh="不能沒有內容", en="it must be text, and is missing or null")


class OllamaChatRequest(Strict):
    """The body of `POST /api/chat`."""

    model: str
    messages: list[OllamaMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    tools: list[Tool] = Field([], max_length=MAX_TOOLS)
    options: Options = Field(default_factory=lambda: Options.model_validate({}))
    stream: bool = True


class OllamaGenerateRequest(Strict):
    """The body of `POST /api/generate`."""

    model: str
    prompt: str = Field(min_length=1)
    system: str | None = None
    raw: bool = False
    """Continue the text itself, without the chat template."""
    options: Options = Field(default_factory=lambda: Options.model_validate({}))
    stream: bool = True


class OllamaAnswer:
    """An answer under way, as lines of JSON.

    Args:
        chat: whether it answers a conversation or continues a text.
    """

    media_type = "application/x-ndjson"
    last_line = ""

    def __init__(self, served: Served, prompt_tokens: int, *, chat: bool, tools: ToolFormat | None = None) -> None:
        self._model = served.name
        self._chat = chat
        self._turn = Turn(tools)
        self._started = time.monotonic_ns()
        self._first = 0
        self.usage = Usage(prompt_tokens)

    def begin(self) -> Iterator[Event]:
        """Nothing yet."""
        return iter(())

    def add(self, choice: int, delta: "Delta") -> Iterator[Event]:
        """What the answer has gained."""
        self._first = self._first or time.monotonic_ns()
        calls = len(self._turn.calls)
        parts = self._turn.add(delta)
        self.usage.completion_tokens = delta.completion_tokens
        for part in parts:
            if isinstance(part, str):
                yield self._piece(part, [])
            else:
                yield self._piece("", self._turn.calls[calls : calls + 1])
                calls += 1

    def complete(self, choice: int) -> bool:
        """Whether it is no longer worth writing on."""
        return self._turn.complete

    def end(self) -> Iterator[Event]:
        """The last line, with the counts."""
        yield {**self._piece("", []), **self._counts()}

    def whole(self) -> dict[str, Any]:
        """The whole answer as one object."""
        return {**self._piece(self._turn.text, self._turn.calls), **self._counts()}

    def failed(self, body: dict[str, Any]) -> Event:
        """Ollama's errors are a text."""
        return {"error": body["error"]["message"]}

    def line(self, event: Event) -> str:
        """One line."""
        return compact(event) + "\n"

    def _piece(self, text: str, calls: list[dict[str, Any]]) -> Event:
        head = {"model": self._model, "created_at": datetime.now(UTC).isoformat()}
        if not self._chat:
            return {**head, "response": text, "done": False}
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if calls:
            functions = [call["function"] for call in calls]
            message["tool_calls"] = [
                {"function": {"name": f["name"], "arguments": json.loads(f["arguments"])}} for f in functions
            ]
        return {**head, "message": message, "done": False}

    def _counts(self) -> Event:
        now = time.monotonic_ns()
        return {
            "done": True,
            "done_reason": "length" if self._turn.reason == "length" else "stop",
            "total_duration": now - self._started,
            "prompt_eval_count": self.usage.prompt_tokens,
            "prompt_eval_duration": self._first - self._started,
            "eval_count": self.usage.completion_tokens,
            "eval_duration": now - self._first,
        }
