"""How the next token is chosen."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wenfang.core.errors import InputError
from wenfang.core.language import say


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """What one request asks of the sampler.

    Raises:
        InputError: a value is out of range; the message names it.
    """

    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token."""
    top_p: float = 1.0
    """Nucleus: the smallest set of likeliest tokens with this total probability (Holtzman et al. 2020)."""
    top_k: int = 0
    """Only the k likeliest tokens; 0 means all."""
    max_tokens: int | None = None
    """Longest completion in tokens; None means to the end of the context."""
    stop: tuple[str, ...] = ()
    """Strings that end the completion and are not part of it."""
    seed: int | None = None
    """Same seed, prompt and batch: same text. None draws a fresh one."""

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("temperature", self.temperature, 0.0, 100.0),
            ("top_p", self.top_p, 0.0, 1.0),
            ("top_k", self.top_k, 0, 1 << 31),
            ("max_tokens", 1 if self.max_tokens is None else self.max_tokens, 1, 1 << 31),
            ("seed", 0 if self.seed is None else self.seed, 0, (1 << 63) - 1),
        ):
            if not (math.isfinite(value) and low <= value <= high):
                raise InputError(
                    say(
                        zh=f"`{name}` 是 {value!r}，必須介於 {low} 與 {high} 之間。",
                        en=f"`{name}` is {value!r}; it must lie between {low} and {high}.",
                    )
                )
        if self.top_p == 0.0:
            raise InputError(say(zh="`top_p` 必須大於 0。", en="`top_p` must be greater than 0."))
        if any(not text for text in self.stop):
            raise InputError(say(zh="`stop` 不能有空字串。", en="`stop` must not hold an empty string."))


def sample(logits_NV: Tensor, params: list[SamplingParams], uniform_N: list[float]) -> list[int]:
    """One token id per row, by inverting the cumulative distribution at that row's uniform number in [0, 1).

    Args:
        logits_NV: fp32 logits of N requests.
        params: sampling of each request.
        uniform_N: one number per request, drawn from its own generator.
    """
    greedy = [p.temperature == 0.0 for p in params]
    if all(greedy):
        return [int(i) for i in logits_NV.argmax(-1)]
    temperature_N1 = torch.tensor([[p.temperature or 1.0] for p in params])
    top_p_N1 = torch.tensor([[p.top_p] for p in params])
    top_k_N1 = torch.tensor([[p.top_k or logits_NV.shape[1]] for p in params])
    sorted_NV, order_NV = (logits_NV.float() / temperature_N1).sort(dim=-1, descending=True, stable=True)
    probabilities_NV = sorted_NV.softmax(-1)
    before_NV = probabilities_NV.cumsum(-1) - probabilities_NV
    kept_NV = (before_NV < top_p_N1) & (torch.arange(logits_NV.shape[1]) < top_k_N1)
    kept_NV[:, 0] = True
    cumulative_NV = (probabilities_NV * kept_NV).double().cumsum(-1)
    target_N1 = torch.tensor([[u] for u in uniform_N], dtype=torch.float64) * cumulative_NV[:, -1:]
    rank_N1 = torch.searchsorted(cumulative_NV, target_N1, right=True)
    rank_N1 = rank_N1.minimum(kept_NV.sum(-1, keepdim=True) - 1)  # Rounding may step past the last kept token.
    rank_N1[torch.tensor(greedy)] = 0
    return [int(i) for i in order_NV.gather(1, rank_N1).squeeze(1)]
