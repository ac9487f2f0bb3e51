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
        prompt: token ids before the text, where it does not show them again.
        ids: name tokens by their ids.
    """

    def __init__(self, served: Served, prompt: Sequence[int] = (), *, ids: bool = False) -> None:
        from wenfang.engine.text import TextStream

        self._served = served
        self._ids = ids
        self._text = TextStream(served.engine.tokenizer, (), prompt)
        self._offset = 0

    def take(self, logprobs: Sequence["TokenLogprob | None"], tokens: Sequence[int]) -> dict[str, Any]:
        """The object for the next tokens; a token without log-probability is the first of a prompt.

        `text_offset` counts characters; pieces of one character have its place.
        """
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(self._text.push(token))
        return {
            "tokens": [self._name(token) for token in tokens],
            "token_logprobs": [None if item is None else max(item.logprob, LEAST) for item in logprobs],
            "top_logprobs": [
                None if item is None else {self._name(t): max(v, LEAST) for t, v in item.top} for item in logprobs
            ],
            "text_offset": offsets,
        }

    def _name(self, token: int) -> str:
        return f"token_id:{token}" if self._ids else _name(self._served.token_bytes(token))


def _entry(served: Served, token: int, logprob: float) -> dict[str, Any]:
    spelled = served.token_bytes(token)
    written = None if token in served.special_ids else list(spelled)
    return {"token": _name(spelled), "logprob": max(logprob, LEAST), "bytes": written}


def _name(spelled: bytes) -> str:
    """A token's text; of a piece of a character its bytes, as OpenAI writes them: `\\xe6\\x98`."""
    return spelled.decode(errors="backslashreplace")
