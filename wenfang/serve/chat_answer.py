"""OpenAI's chat completion objects, made from an engine's deltas."""

import time
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from wenfang.serve.logprobs import chat_logprobs
from wenfang.serve.models import Served
from wenfang.serve.respond import Event, ServerSentEvents, Usage
from wenfang.serve.toolcalls import ToolCall, ToolFormat, ToolReader

if TYPE_CHECKING:
    from wenfang.engine import Delta


class Turn:
    """One choice: a message as it grows.

    Args:
        tools: how the model writes calls, if it was given tools.
        several: whether it may hold more than one call; if not, it ends with the first.
    """

    def __init__(self, tools: ToolFormat | None, *, several: bool = True) -> None:
        self.text = ""
        self.calls: list[dict[str, Any]] = []
        self.logprobs: list[dict[str, Any]] = []
        self.reason: str | None = None
        self.tokens = 0
        self._reader = None if tools is None else ToolReader(tools)
        self._several = several

    @property
    def complete(self) -> bool:
        """Whether nothing more is taken in."""
        return self.reason is not None

    def add(self, delta: "Delta") -> list[str | ToolCall]:
        """Take in a piece; returns the parts of the message that are now certain."""
        if self.complete:
            return []
        parts: list[str | ToolCall] = [delta.text] if delta.text else []
        if self._reader is not None:
            parts = [*self._reader.push(delta.text), *(self._reader.finish() if delta.finish_reason else ())]
        first = next((i for i, part in enumerate(parts, 1) if not isinstance(part, str)), None)
        ended = first is not None and not self._several
        parts = parts[:first] if ended else parts
        for part in parts:
            if isinstance(part, str):
                self.text += part
            else:
                function = {"name": part.name, "arguments": part.arguments}
                self.calls.append({"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function})
        self.tokens = delta.completion_tokens
        reason = "stop" if ended else delta.finish_reason
        self.reason = "tool_calls" if self.calls and reason == "stop" else reason
        return parts

    def message(self) -> dict[str, Any]:
        """OpenAI's message object."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text, "refusal": None}
        if self.calls:
            message |= {"content": self.text or None, "tool_calls": self.calls}
        return message


class ChatAnswer(ServerSentEvents):
    """A chat completion under way.

    Args:
        choices: how many.
        tools: how the model writes calls, if it was given tools.
        parallel_calls: whether a choice may hold more than one.
        logprobs: whether they were asked for.
        include_usage: whether a stream ends with the usage.
    """

    def __init__(
        self,
        served: Served,
        prompt_tokens: int,
        choices: int,
        *,
        tools: ToolFormat | None = None,
        parallel_calls: bool = True,
        logprobs: bool = False,
        include_usage: bool = False,
    ) -> None:
        self._served = served
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": served.name}
        self._turns = [Turn(tools, several=parallel_calls) for _ in range(choices)]
        self._logprobs = logprobs
        self._include_usage = include_usage
        self.usage = Usage(prompt_tokens)

    def begin(self) -> Iterator[Event]:
        """The roles, which say that the choices exist."""
        for choice in range(len(self._turns)):
            yield self._event(choice, {"role": "assistant", "content": ""})

    def add(self, choice: int, delta: "Delta") -> Iterator[Event]:
        """What one choice has gained."""
        turn = self._turns[choice]
        if turn.complete:
            return
        earlier = len(turn.calls)
        parts = turn.add(delta)
        self.usage.completion_tokens = sum(turn.tokens for turn in self._turns)
        logprobs = chat_logprobs(self._served, delta.logprobs) if self._logprobs else []
        turn.logprobs += logprobs
        for part in parts:
            if isinstance(part, str):
                yield self._event(choice, {"content": part}, logprobs=logprobs)
                logprobs = []
            else:
                call = {"index": earlier, **turn.calls[earlier]}
                earlier += 1
                yield self._event(choice, {"tool_calls": [call]}, logprobs=logprobs)
                logprobs = []
        if logprobs:
            yield self._event(choice, {"content": ""}, logprobs=logprobs)
        if turn.reason is not None:
            yield self._event(choice, {}, reason=turn.reason)

    def complete(self, choice: int) -> bool:
        """Whether a choice is no longer worth writing on."""
        return self._turns[choice].complete

    def end(self) -> Iterator[Event]:
        """The usage, if asked for."""
        if self._include_usage:
            yield {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": self.usage.openai()}

    def whole(self) -> dict[str, Any]:
        """The whole answer as one object."""
        choices = [
            {
                "index": i,
                "message": turn.message(),
                "logprobs": {"content": turn.logprobs, "refusal": None} if self._logprobs else None,
                "finish_reason": turn.reason,
            }
            for i, turn in enumerate(self._turns)
        ]
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": self.usage.openai()}

    def _event(
        self, choice: int, delta: Event, *, reason: str | None = None, logprobs: list[dict[str, Any]] | None = None
    ) -> Event:
        shown = {"content": logprobs, "refusal": None} if logprobs else None
        body = {"index": choice, "delta": delta, "logprobs": shown, "finish_reason": reason}
        usage = {"usage": None} if self._include_usage else {}
        return {**self._head, "object": "chat.completion.chunk", "choices": [body], **usage}
