"""Speculative decoding: cheap guesses at the next tokens, which the model then reads all at once.

A guess never decides anything. The tokens are drawn from the model's own outputs by the request's own random numbers,
just as without speculation, and a guess counts only where it is the token so drawn. Text and distribution are therefore
the same with any guesser and with none. A guesser draws with the same random numbers at the same positions, which makes
two distributions p and q agree with probability at least (1 − d)/(1 + d) for total variation d (Daliri et al. 2024,
"Coupling without communication and drafter-invariant speculative decoding"), and a certain guess of probability p be
accepted with probability p, as in rejection sampling (Leviathan et al. 2023; Chen et al. 2023).
"""

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from wenfang.core.errors import InputError
from wenfang.core.language import say
from wenfang.engine.load import load_tokenizer
from wenfang.engine.request import Generation
from wenfang.engine.runner import Runner
from wenfang.engine.sequence import Sequence
from wenfang.model import Decoder, load_model
from wenfang.tokenizer import Tokenizer

MOST_TOKENS = 64
"""Guesses at once; more would hardly ever all be right."""


class Drafter(Protocol):
    """Who guesses."""

    tokens: int
    """Most guesses at once."""

    def read_prompt(self, sequence: Sequence, start: int, hidden_TD: Tensor) -> None:
        """Take what the model computed for tokens of a prompt from `start` on."""

    def propose(self, requests: Rows[Generation], limits: Rows[int]) -> list[list[int]]:
        """At most `limit` next tokens for each request; its blocks have room for them."""

    def read_accepted(self, sequence: Sequence, start: int, hidden_TD: Tensor) -> None:
        """Take what the model computed for the newest tokens that are certain, from `start` on."""


@dataclass(frozen=True)
class Lookup:
    """Guess what followed the last words where they stood earlier (prompt lookup decoding, Saxena 2023).

    Raises:
        InputError: `tokens` is out of range.
    """

    tokens: int = 8
    """Guesses at once."""

    def __post_init__(self) -> None:
        _check_tokens(self.tokens)


@dataclass(frozen=True)
class DraftModel:
    """Let a smaller model with the same vocabulary guess.

    Raises:
        InputError: `tokens` is out of range.
    """

    model: Decoder
    tokenizer: Tokenizer
    tokens: int = 4
    """Guesses at once."""

    def __post_init__(self) -> None:
        _check_tokens(self.tokens)

    @classmethod
    def load(cls, folder: Path) -> "DraftModel":
        """Open a model folder or GGUF file.

        Raises:
            InputError, ModelError, TokenizerError: the folder or a file in it cannot be used.
        """
        model = load_model(folder)
        return cls(model, load_tokenizer(folder))


@dataclass(frozen=True)
class LookAhead:
    """Let the model's own layers that look ahead guess: as many tokens as it has of them."""


Speculation = Lookup | DraftModel | LookAhead


def check_speculation(speculation: Speculation | None, model: Decoder, tokenizer: Tokenizer) -> None:
    """Refuse what a model cannot do.

    Raises:
        InputError: the models or their tokenizers do not fit.
    """
    models = [model, *([speculation.model] if isinstance(speculation, DraftModel) else [])]
    if speculation is not None and any(decoder.config.recurrent for decoder in models):
        raise InputError(
            say(
                zh="有循環層的模型無法收回猜錯的詞元，因此不能推測解碼。請去掉該選項。",
                en="A model with recurrent layers cannot take back a wrong guess, so it cannot decode speculatively. "
                "Leave the option out.",
            )
        )
    if isinstance(speculation, LookAhead) and not model.config.ahead:
        raise InputError(
            say(
                zh="這個模型沒有預測多個詞元的層，無法自我推測。請改用 Lookup 或草稿模型。",
                en="This model has no layers that look ahead, so it cannot guess for itself. "
                "Use lookup or a draft model instead.",
            )
        )
    if isinstance(speculation, DraftModel) and speculation.tokenizer.tokens != tokenizer.tokens:
        raise InputError(
            say(
                zh="草稿模型的詞彙表與模型的不同，無法替它猜。請用同一個分詞器訓練的模型。",
                en="The draft model has another vocabulary than the model, so it cannot guess for it. "
                "Use a model with the same tokenizer.",
            )
        )


def make_drafter(speculation: Speculation | None, runner: Runner, blocks: int) -> Drafter | None:
    """The guesser that was asked for, over a cache of as many blocks as the model's."""
    from wenfang.engine.drafters import AheadDrafter, LookupDrafter, ModelDrafter

    match speculation:
        case None:
            return None
        case Lookup():
            return LookupDrafter(speculation.tokens)
        case DraftModel():
            draft = Runner(speculation.model.eval(), blocks)
            return ModelDrafter(draft, speculation.tokens, runner.config.vocab_size)
        case LookAhead():
            return AheadDrafter(runner)


def _check_tokens(tokens: int) -> None:
    if not 1 <= tokens <= MOST_TOKENS:
        raise InputError(
            say(
                zh=f"一次要猜的詞元數是 {tokens}，必須介於 1 與 {MOST_TOKENS} 之間。",
                en=f"{tokens} tokens cannot be guessed at once; give a number from 1 to {MOST_TOKENS}.",
            )
        )
