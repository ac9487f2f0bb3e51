"""What a chat request may say. What is not listed here is refused by name, never dropped in silence."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from wenfang.core.language import say
from wenfang.serve.errors import ApiError, unsupported

MAX_CHOICES = 16
MAX_STOPS = 4

ASKS_FOR_NOTHING: dict[str, tuple[object, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
}
"""Values of unsupported parameters that change nothing, which some clients always send."""


def _without_nulls(data: Any) -> Any:
    """In OpenAI's interface a null stands for an absent parameter."""
    return {k: v for k, v in data.items() if v is not None} if isinstance(data, dict) else data


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


class Message(BaseModel):
    """One turn of the conversation. Which roles there are is the model's chat template's business."""

    model_config = ConfigDict(extra="forbid", strict=True)

    role: str
    content: Annotated[str, BeforeValidator(_joined_text)]

    _drop_nulls = model_validator(mode="before")(_without_nulls)


class StreamOptions(BaseModel):
    """Options that only make sense for a stream."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False
    include_obfuscation: Literal[False] = False

    _drop_nulls = model_validator(mode="before")(_without_nulls)


class ChatRequest(BaseModel):
    """The body of `POST /v1/chat/completions`."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str
    messages: list[Message] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    """Not OpenAI's, but common to local servers: `extra_body={"top_k": 40}`. 0 keeps every token."""
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    """OpenAI's newer name for `max_tokens`."""
    stop: list[Annotated[str, Field(min_length=1)]] = Field(default=[], max_length=MAX_STOPS)
    seed: int | None = Field(None, ge=0, lt=2**63)
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    user: str | None = None
    """Who asks, for the caller's own records. It never changes an answer."""

    @model_validator(mode="before")
    @classmethod
    def _normalise(cls, data: Any) -> Any:
        data = _without_nulls(data)
        if isinstance(data, dict) and isinstance(data.get("stop"), str):
            data["stop"] = [data["stop"]]
        return data

    def check(self) -> None:
        """Refuse what this server cannot do.

        Raises:
            ApiError: an unknown parameter, or two that contradict each other.
        """
        for name, value in (self.model_extra or {}).items():
            if value not in ASKS_FOR_NOTHING.get(name, ()):
                raise unsupported(name)
        if self.stream_options is not None and not self.stream:
            raise ApiError(
                say(
                    zh="'stream_options' 只能與 'stream': true 一起使用。",
                    en="'stream_options' is only allowed together with 'stream': true.",
                ),
                param="stream_options",
                code="invalid_value",
            )

    @property
    def limit(self) -> int | None:
        """The most tokens to generate for each choice; None lets it run to the end of the context."""
        limits = [m for m in (self.max_completion_tokens, self.max_tokens) if m is not None]
        return min(limits) if limits else None
