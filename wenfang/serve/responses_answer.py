"""OpenAI's response object and its events."""

import time
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from wenfang.serve.chat_answer import Turn
from wenfang.serve.models import Served
from wenfang.serve.respond import Event, Usage, compact
from wenfang.serve.responses import ResponsesRequest
from wenfang.serve.toolcalls import ToolFormat

if TYPE_CHECKING:
    from wenfang.engine import Delta


class ResponsesAnswer:
    """A response under way. Text and calls become items of its output in the order they are written."""

    media_type = "text/event-stream"
    last_line = ""

    def __init__(
        self,
        served: Served,
        asked: ResponsesRequest,
        prompt_tokens: int,
        tools: ToolFormat | None,
        *,
        parallel_calls: bool,
    ) -> None:
        self._head = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": served.name,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata,
            "parallel_tool_calls": asked.parallel_tool_calls,
            "previous_response_id": None,
            "store": False,
            "temperature": asked.temperature,
            "text": asked.text.model_dump(by_alias=True),
            "tool_choice": asked.model_dump()["tool_choice"],
            "tools": [tool.model_dump() for tool in asked.tools],
            "top_p": asked.top_p,
            "truncation": asked.truncation,
        }
        self._turn = Turn(tools, several=parallel_calls)
        self._output: list[dict[str, Any]] = []
        self._number = -1
        self._cached_tokens = 0
        self.usage = Usage(prompt_tokens)

    def begin(self) -> Iterator[Event]:
        """The response exists."""
        yield self._event("response.created", response=self._response("in_progress"))
        yield self._event("response.in_progress", response=self._response("in_progress"))

    def add(self, choice: int, delta: "Delta") -> Iterator[Event]:
        """What it has gained."""
        if self._turn.complete:
            return
        calls = len(self._turn.calls)
        for part in self._turn.add(delta):
            if isinstance(part, str):
                yield from self._write(part)
            else:
                yield from self._call(self._turn.calls[calls])
                calls += 1
        self.usage.completion_tokens = delta.completion_tokens
        self._cached_tokens = delta.cached_tokens

    def complete(self, choice: int) -> bool:
        """Whether it is no longer worth writing on."""
        return self._turn.complete

    def end(self) -> Iterator[Event]:
        """The response is complete, or as complete as its limit allows."""
        if not self._output:
            yield from self._write("")
        yield from self._close_text()
        name = "response.incomplete" if self._turn.reason == "length" else "response.completed"
        yield self._event(name, response=self.whole())

    def whole(self) -> dict[str, Any]:
        """The whole response as one object."""
        return self._response("incomplete" if self._turn.reason == "length" else "completed")

    def failed(self, body: dict[str, Any]) -> Event:
        """The response ends with an error."""
        error = {"code": body["error"]["code"] or "server_error", "message": body["error"]["message"]}
        return self._event("response.failed", response={**self._response("failed"), "error": error})

    def line(self, event: Event) -> str:
        """One named event."""
        return f"event: {event['type']}\ndata: {compact(event)}\n\n"

    def _response(self, status: str) -> dict[str, Any]:
        usage = None if status == "in_progress" else {
            "input_tokens": self.usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": self._cached_tokens},
            "output_tokens": self.usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.usage.total_tokens,
        }  # fmt: skip
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        changing = {"status": status, "error": None, "incomplete_details": cut, "usage": usage}
        return {**self._head, **changing, "output": [dict(item) for item in self._output]}

    def _event(self, name: str, /, **fields: Any) -> Event:
        self._number += 1
        return {"type": name, "sequence_number": self._number, **fields}

    @property
    def _writing(self) -> bool:
        return bool(self._output) and self._output[-1].get("status") == "in_progress"

    def _write(self, text: str) -> Iterator[Event]:
        if not self._writing:
            item = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "status": "in_progress"}
            self._output.append({**item, "content": []})
            yield self._event("response.output_item.added", output_index=self._index, item=dict(self._output[-1]))
            yield self._part_event("response.content_part.added", part=_part(""))
            self._output[-1]["content"] = [_part("")]
        if text:
            self._output[-1]["content"] = [_part(self._text + text)]
            yield self._part_event("response.output_text.delta", delta=text, logprobs=[])

    def _close_text(self) -> Iterator[Event]:
        if self._writing:
            self._output[-1]["status"] = "completed"
            yield self._part_event("response.output_text.done", text=self._text, logprobs=[])
            yield self._part_event("response.content_part.done", part=_part(self._text))
            yield self._event("response.output_item.done", output_index=self._index, item=dict(self._output[-1]))

    def _call(self, call: dict[str, Any]) -> Iterator[Event]:
        yield from self._close_text()
        function = call["function"]
        item = {"id": f"fc_{uuid.uuid4().hex}", "type": "function_call", "call_id": call["id"], "status": "completed"}
        self._output.append({**item, "name": function["name"], "arguments": function["arguments"]})
        shown = {"output_index": self._index, "item_id": item["id"]}
        opened = {**self._output[-1], "arguments": "", "status": "in_progress"}
        yield self._event("response.output_item.added", output_index=self._index, item=opened)
        yield self._event("response.function_call_arguments.delta", **shown, delta=function["arguments"])
        done = {"name": function["name"], "arguments": function["arguments"]}
        yield self._event("response.function_call_arguments.done", **shown, **done)
        yield self._event("response.output_item.done", output_index=self._index, item=dict(self._output[-1]))

    def _part_event(self, name: str, /, **fields: Any) -> Event:
        shown = {"output_index": self._index, "content_index": 0, "item_id": self._output[-1]["id"]}
        return self._event(name, **shown, **fields)

    @property
    def _index(self) -> int:
        return len(self._output) - 1

    @property
    def _text(self) -> str:
        return str(self._output[-1]["content"][0]["text"])


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
