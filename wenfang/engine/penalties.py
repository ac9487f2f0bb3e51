"""Penalties on what was already said, by the tokens before: each changes one row of logits in place and returns it."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

LONGEST_MATCH = 64
"""DRY looks no further back than this: the penalty is beyond any logit long before."""


def bias(logits_V: Tensor, tokens_B: Tensor, values_B: Tensor) -> Tensor:
    """Add to the logits of single tokens."""
    return logits_V.index_add_(0, tokens_B, values_B)


def repetition(logits_V: Tensor, history: Sequence[int], penalty: float) -> Tensor:
    """CTRL's penalty (Keskar et al. 2019): seen tokens' logits are divided by it, negative ones multiplied."""
    seen = torch.tensor(sorted(set(history)))
    old = logits_V[seen]
    return logits_V.index_copy_(0, seen, torch.where(old < 0, old * penalty, old / penalty))


def presence_and_frequency(logits_V: Tensor, written: Sequence[int], presence: float, frequency: float) -> Tensor:
    """OpenAI's penalties: logit − count · frequency − [count > 0] · presence, over the completion only."""
    counts = Counter(written)
    taken = [-presence - n * frequency for n in counts.values()]
    return logits_V.index_add_(0, torch.tensor(list(counts)), torch.tensor(taken, dtype=logits_V.dtype))


def dry(
    logits_V: Tensor,
    history: Sequence[int],
    *,
    multiplier: float,
    base: float,
    allowed_length: int,
    breakers: frozenset[int],
) -> Tensor:
    """DRY (Weidmann 2024): a token that would prolong a repetition of n ≥ `allowed_length` tokens loses
    multiplier · base^(n − allowed_length). A repetition does not reach back over a breaker."""
    longest = repetition_lengths(history, breakers)
    taken = {token: n for token, n in longest.items() if n >= allowed_length}
    if not taken:
        return logits_V
    penalty = [-multiplier * base ** (n - allowed_length) for n in taken.values()]
    return logits_V.index_add_(0, torch.tensor(list(taken)), torch.tensor(penalty, dtype=logits_V.dtype))


def repetition_lengths(history: Sequence[int], breakers: frozenset[int]) -> dict[int, int]:
    """For each token that once followed the text's present ending: how many tokens of that ending matched."""
    longest: dict[int, int] = {}
    if not history or history[-1] in breakers:
        return longest
    end = len(history) - 1
    for i in range(end):
        if history[i] != history[end] or history[i + 1] in breakers:
            continue
        n = 1
        while n < min(LONGEST_MATCH, i + 1) and history[i - n] == history[end - n] and history[i - n] not in breakers:
            n += 1
        longest[history[i + 1]] = max(longest.get(history[i + 1], 0), n)
    return longest
