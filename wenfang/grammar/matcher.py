"""A grammar at work on one text: which tokens may come next, and which must."""

import time
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from wenfang.core.errors import GrammarError, WenfangError
from wenfang.core.language import say
from wenfang.grammar.base import Grammar

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher

WORD_BITS = 32

PATIENCE_S = 0.5e-3
"""How long masks are computed one after the other: waking threads takes longer than most of them do."""


class Matcher:
    """One text's progress through a grammar.

    Args:
        inner: llguidance's matcher at the beginning.
        grammar: what it was compiled from.
        end_id: the token that ends a text.
        vocab_size: tokens the model knows; those beyond the tokenizer's are never allowed.
    """

    def __init__(self, inner: "LLMatcher", grammar: Grammar, *, end_id: int, vocab_size: int) -> None:
        self.inner = inner
        self.grammar = grammar
        self.end_id = end_id
        self.vocab_size = vocab_size
        self.allowed_W: npt.NDArray[np.uint32] | None = None
        """A bit for each token that may come next, once `fill_masks` has computed them."""
        self._dead_end = False

    def consume(self, token: int) -> None:
        """Take in a token that the mask allows."""
        self.inner.consume_token(token)
        self.allowed_W = None

    def forced(self) -> list[int]:
        """The tokens that must come next, as far as there is no choice."""
        return list(self.inner.compute_ff_tokens())

    @property
    def ended(self) -> bool:
        """Whether the text is complete and nothing can follow."""
        return bool(self.inner.is_stopped()) and not self.inner.is_error()

    @property
    def failure(self) -> WenfangError | None:
        """Why the text cannot go on: a step's budget is spent, or the grammar has led where nothing fits."""
        dead_end = self._dead_end or str(self.inner.stop_reason()).startswith("NoExtensionBias")
        if self.inner.is_error() and not dead_end:
            reason = str(self.inner.get_error()).partition("\n")[0][:200].rstrip(".")
            return GrammarError(
                say(
                    zh=f"文法在這裡用完了每一步的額度：{reason}。請簡化。",
                    en=f"The grammar spent the budget of a step: {reason}. Simplify it.",
                )
            )
        if dead_end:
            return GrammarError(
                say(zh="文法走進死路：沒有詞元能接下去。", en="The grammar has led to a dead end: no token can follow.")
            )
        return None

    @property
    def address(self) -> int:
        """Where the bits lie in memory."""
        assert self.allowed_W is not None
        return int(self.allowed_W.ctypes.data)

    def blocked(self) -> npt.NDArray[np.bool_]:
        """Blocked_V: the tokens that may not come next."""
        assert self.allowed_W is not None
        return ~np.unpackbits(self.allowed_W.view(np.uint8), count=self.vocab_size, bitorder="little").view(np.bool_)

    def keep(self, allowed_W: npt.NDArray[np.uint32]) -> None:
        """Take in a computed mask."""
        self.allowed_W = allowed_W
        end = allowed_W[self.end_id // WORD_BITS] >> self.end_id % WORD_BITS & 1
        # llguidance allows the end where nothing else is possible.
        self._dead_end = not allowed_W.any() or bool(end and not self.inner.is_accepting())


def fill_masks(matchers: Sequence[Matcher]) -> None:
    """Compute which tokens may come next, where that is not known yet."""
    missing = [matcher for matcher in matchers if matcher.allowed_W is None]
    if not missing:
        return
    allowed_NW = np.zeros((len(missing), -(-missing[0].vocab_size // WORD_BITS)), dtype=np.int32)
    patient_until = time.perf_counter() + PATIENCE_S
    for row, matcher in enumerate(missing):
        matcher.inner.unsafe_compute_mask_ptr(allowed_NW[row:].ctypes.data, allowed_NW.strides[0])
        if time.perf_counter() > patient_until:
            _fill_in_parallel(missing[row + 1 :], allowed_NW[row + 1 :])
            break
    for matcher, allowed_W in zip(missing, allowed_NW.view(np.uint32), strict=True):
        matcher.keep(allowed_W)


def _fill_in_parallel(matchers: Sequence[Matcher], allowed_NW: npt.NDArray[np.int32]) -> None:
    """On all cores."""
    from llguidance.numpy import fill_next_token_bitmask_par

    if matchers:
        pairs = [(matcher.inner, row) for row, matcher in enumerate(matchers)]
        fill_next_token_bitmask_par(_executor(), pairs, allowed_NW)


@cache
def _executor() -> "LLExecutor":
    from llguidance import LLExecutor

    return LLExecutor()
