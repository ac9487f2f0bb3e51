"""Log-probabilities in the two forms OpenAI has for them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wenfang.serve.models import Served

if TYPE_CHECKING:
    from wenfang.engine import TokenLogprob

LEAST = -9999.0
"""Stands for a probability of zero, whose logarithm JSON cannot hold."""


def chat_logprobs(served: Served, logprobs: Sequence["TokenLogprob"]) -> list[dict[str, Any]]:
    """The `logprobs.content` of a chat choice."""
    return [
        {
            **_entry(served, item.token, item.logprob),
            "top_logprobs": [_entry(served, token, logprob) for token, logprob in item.top],
        }
        for item in logprobs
    ]


class TextLogprobs:
    """The `logprobs` of a text completion, gathered token by token.

    Args:
        ids: name tokens by their ids.
    """

    def __init__(self, served: Served, *, ids: bool = False) -> None:
        self._served = served
        self._ids = ids
        self._offset = 0

    def take(self, logprobs: Sequence["TokenLogprob | None"], tokens: Sequence[int]) -> dict[str, Any]:
        """The object for the next tokens; a token without log-probability is the first of a prompt."""
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token_text(self._served, token))
        return {
            "tokens": [self._name(token) for token in tokens],
            "token_logprobs": [None if item is None else max(item.logprob, LEAST) for item in logprobs],
            "top_logprobs": [
                None if item is None else {self._name(t): max(v, LEAST) for t, v in item.top} for item in logprobs
            ],
            "text_offset": offsets,
        }

    def _name(self, token: int) -> str:
        return f"token_id:{token}" if self._ids else token_text(self._served, token)


def token_text(served: Served, token: int) -> str:
    """What a token stands for; a special one, or a piece of a character, as the vocabulary spells it."""
    text = served.engine.tokenizer.decode([token])
    if text and "\ufffd" not in text:
        return text
    return served.tokens[token] if token < len(served.tokens) else ""


def _entry(served: Served, token: int, logprob: float) -> dict[str, Any]:
    text = served.engine.tokenizer.decode([token])
    whole = bool(text) and "\ufffd" not in text
    return {
        "token": token_text(served, token),
        "logprob": max(logprob, LEAST),
        "bytes": list(text.encode()) if whole else None,
    }
