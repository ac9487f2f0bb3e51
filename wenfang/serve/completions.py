"""OpenAI's chat completion objects, made from an engine's deltas."""

import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wenfang.core.errors import InputError, WenfangError
from wenfang.core.language import say
from wenfang.serve.dispatch import Generation
from wenfang.serve.errors import ApiError
from wenfang.serve.schema import ChatRequest

if TYPE_CHECKING:
    from wenfang.engine import Delta, Engine, SamplingParams

LINE_BREAKS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}
"""Unicode line ends that JSON leaves as they are but some readers of event streams split lines at."""


@dataclass(frozen=True)
class Job:
    """A request made ready for the engine: one prompt, one set of sampling parameters for each choice."""

    prompt: list[int]
    params: list["SamplingParams"]


def prepare(request: ChatRequest, engine: "Engine") -> Job:
    """Tokenise a request and check that it fits.

    A `max_tokens` beyond the end of the context is only an upper bound that is never reached: such a
    completion ends with finish_reason `length`. With a seed, choice number i is drawn with seed + i.

    Raises:
        ApiError: the conversation is malformed or leaves no room for an answer.
    """
    from wenfang.engine import SamplingParams

    try:
        prompt = engine.tokenizer.chat(
            [{"role": m.role, "content": m.content} for m in request.messages], add_generation_prompt=True
        )
    except InputError as error:
        raise ApiError(str(error), param="messages", code="invalid_value") from None
    room = engine.context - len(prompt)
    if room < 1:
        raise ApiError(
            say(
                zh=f"對話有 {len(prompt)} 個詞元，而模型的上下文只有 {engine.context} 個。請縮短對話。",
                en=f"This model's context is {engine.context} tokens, but the messages take {len(prompt)} and leave "
                "no room for an answer. Shorten them.",
            ),
            param="messages",
            code="context_length_exceeded",
        )
    params = [
        SamplingParams(
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            max_tokens=room if request.limit is None else min(room, request.limit),
            stop=tuple(request.stop),
            seed=None if request.seed is None else request.seed + choice,
        )
        for choice in range(request.n)
    ]
    return Job(prompt, params)


class Answer:
    """One completion under way: gathers deltas and renders OpenAI's objects."""

    def __init__(self, model: str, job: Job) -> None:
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._prompt_tokens = len(job.prompt)
        self._texts = ["" for _ in job.params]
        self._reasons: list[str | None] = [None for _ in job.params]
        self._tokens = [0 for _ in job.params]

    def add(self, choice: int, delta: "Delta") -> None:
        """Take in what one choice has gained."""
        self._texts[choice] += delta.text
        self._tokens[choice] = delta.completion_tokens
        self._reasons[choice] = delta.finish_reason

    def usage(self) -> dict[str, int]:
        """Tokens read and written so far; the prompt counts once however many choices continue it."""
        written = sum(self._tokens)
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": written,
            "total_tokens": self._prompt_tokens + written,
        }

    def completion(self) -> dict[str, Any]:
        """The whole answer as one object."""
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": None,
                "finish_reason": reason,
            }
            for i, (text, reason) in enumerate(zip(self._texts, self._reasons, strict=True))
        ]
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": self.usage()}

    async def events(self, deltas: AsyncIterator[tuple[int, "Delta"]], *, include_usage: bool) -> AsyncIterator[str]:
        """The answer as server-sent events. An error after the first token is an event too, then the stream ends."""
        extra: dict[str, Any] = {"usage": None} if include_usage else {}
        for choice in range(len(self._texts)):
            yield self._event(choice, {"role": "assistant", "content": ""}, None, extra)
        try:
            async for choice, delta in deltas:
                self.add(choice, delta)
                if delta.text:
                    yield self._event(choice, {"content": delta.text}, None, extra)
                if delta.finish_reason is not None:
                    yield self._event(choice, {}, delta.finish_reason, extra)
        except WenfangError as error:
            yield _data(ApiError(str(error), status=500, kind="server_error", code="engine_failure").body())
            return
        if include_usage:
            yield _data({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": self.usage()})
        yield "data: [DONE]\n\n"

    def _event(self, choice: int, delta: dict[str, str], reason: str | None, extra: dict[str, Any]) -> str:
        body = {"index": choice, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _data({**self._head, "object": "chat.completion.chunk", "choices": [body], **extra})


async def collect(generation: Generation, answer: Answer) -> dict[str, Any]:
    """Wait for every choice to end.

    Raises:
        WenfangError: the engine failed.
    """
    async for choice, delta in generation:
        answer.add(choice, delta)
    return answer.completion()


def _data(value: dict[str, Any]) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(LINE_BREAKS)
    return f"data: {text}\n\n"
