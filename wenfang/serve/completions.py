"""What a text completion may ask, and OpenAI's objects for its answer."""

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from wenfang.serve.errors import unsupported, wrong
from wenfang.serve.forms import StructuredOutputs
from wenfang.serve.logprobs import TextLogprobs
from wenfang.serve.models import Served
from wenfang.serve.respond import Event, ServerSentEvents, Usage
from wenfang.serve.sampling import MAX_CHOICES, MAX_TOKENS, Sampling
from wenfang.serve.schema import StreamOptions, drop_idle

if TYPE_CHECKING:
    from wenfang.engine import Delta

MAX_PROMPTS = 64
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Prompt = (
    str
    | Annotated[list[Annotated[str, Field()]], Field(min_length=1, max_length=MAX_PROMPTS)]
    | Annotated[list[TokenId], Field(min_length=1)]
    | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=MAX_PROMPTS)]
)
"""A text, several, the token ids of one, or those of several."""


class CompletionRequest(Sampling):
    """The body of `POST /v1/completions`."""

    model: str
    prompt: Prompt
    suffix: str | None = None
    """Text after the gap to fill; for models with fill-in-the-middle tokens."""
    echo: bool = False
    """Begin the answer with the prompt."""
    logprobs: int | None = Field(None, ge=0, le=20)
    return_tokens_as_token_ids: bool = False
    """vLLM's: tokens of `logprobs` are called `token_id:5`, as a text may belong to several or be half a character."""
    structured_outputs: StructuredOutputs | None = None
    """vLLM's: what each text must be."""
    max_tokens: int = Field(16, ge=1, le=MAX_TOKENS)
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    best_of: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    truncate_prompt_tokens: int | None = Field(None, ge=1, lt=2**31)
    """Keep only so many tokens of a prompt, its last ones."""
    user: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_idle(cls, data: Any) -> Any:
        return drop_idle(data, {})

    def check(self) -> None:
        """Refuse what only shows when the parts are seen together.

        Raises:
            ApiError: two parameters that contradict each other.
        """
        if self.best_of not in (None, self.n):
            raise unsupported("best_of")
        if self.stream_options is not None and not self.stream:
            raise unsupported("stream_options")
        if self.return_tokens_as_token_ids and self.logprobs is None:
            raise unsupported("return_tokens_as_token_ids")
        if self.suffix is not None and (self.echo or not isinstance(self.prompt, str)):
            raise unsupported("suffix")
        if self.suffix is not None and self.truncate_prompt_tokens is not None:  # Which of the two texts to cut?
            raise wrong("truncate_prompt_tokens", zh="不能與 'suffix' 一起使用", en="it excludes 'suffix'")


@dataclass(frozen=True)
class Start:
    """What a choice continues, and what of it is shown again."""

    ids: list[int]
    echoed: str = ""


class TextAnswer(ServerSentEvents):
    """A text completion under way.

    Args:
        starts: what each choice continues.
        echo: whether the prompts' tokens are shown with their log-probabilities.
        logprobs: whether they were asked for.
        ids: whether their tokens are named by id.
        include_usage: whether a stream ends with the usage.
    """

    def __init__(
        self,
        served: Served,
        starts: list[Start],
        prompt_tokens: int,
        *,
        logprobs: bool,
        ids: bool,
        include_usage: bool,
    ) -> None:
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": served.name,
        }
        self._starts = starts
        self._texts = [start.echoed for start in starts]
        self._reasons: list[str | None] = [None for _ in starts]
        self._tokens = [0 for _ in starts]
        before = [() if start.echoed else start.ids for start in starts]
        self._readers = [TextLogprobs(served, prompt, ids=ids) for prompt in before] if logprobs else None
        self._logprobs: list[dict[str, list[Any]]] = [{} for _ in starts]
        self._include_usage = include_usage
        self.usage = Usage(prompt_tokens)

    def begin(self) -> Iterator[Event]:
        """The echoed prompts."""
        for choice, start in enumerate(self._starts):
            if start.echoed:
                yield self._event(choice, start.echoed)

    def add(self, choice: int, delta: "Delta") -> Iterator[Event]:
        """What one choice has gained."""
        self._texts[choice] += delta.text
        self._tokens[choice], self._reasons[choice] = delta.completion_tokens, delta.finish_reason
        self.usage.completion_tokens = sum(self._tokens)
        logprobs = None
        if self._readers is not None:
            echoed = self._starts[choice].ids if delta.prompt_logprobs else []
            tokens = [*echoed, *(item.token for item in delta.logprobs)]
            logprobs = self._readers[choice].take([*delta.prompt_logprobs, *delta.logprobs], tokens)
            for name, values in logprobs.items():
                self._logprobs[choice].setdefault(name, []).extend(values)
        if delta.text or delta.finish_reason or (logprobs and logprobs["tokens"]):
            yield self._event(choice, delta.text, delta.finish_reason, logprobs)

    def complete(self, choice: int) -> bool:
        """Whether a choice is no longer worth writing on."""
        return self._reasons[choice] is not None

    def end(self) -> Iterator[Event]:
        """The usage, if asked for."""
        if self._include_usage:
            yield {**self._head, "choices": [], "usage": self.usage.openai()}

    def whole(self) -> dict[str, Any]:
        """The whole answer as one object."""
        choices = [
            {
                "index": i,
                "text": text,
                "logprobs": self._logprobs[i] if self._readers is not None else None,
                "finish_reason": self._reasons[i],
            }
            for i, text in enumerate(self._texts)
        ]
        return {**self._head, "choices": choices, "usage": self.usage.openai()}

    def _event(
        self, choice: int, text: str, reason: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> Event:
        body = {"index": choice, "text": text, "logprobs": logprobs, "finish_reason": reason}
        usage = {"usage": None} if self._include_usage else {}
        return {**self._head, "choices": [body], **usage}
