"""What a caller gets: pieces as they are written, whole completions, log-probabilities."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenLogprob:
    """A token's log-probability under the bare model, in nats, and the likeliest alternatives, best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Delta:
    """A piece of a completion as it is written."""

    text: str
    finish_reason: str | None
    """`stop` or `length` on the last piece, None before."""
    completion_tokens: int
    """Tokens generated so far."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of the tokens written since the last piece, if asked for."""
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    """Of the prompt, on the first piece, if asked for; None for its first token."""
    drafted: int = 0
    """Tokens guessed so far by speculative decoding."""
    accepted: int = 0
    """How many of the guesses were right."""
    cached_tokens: int = 0
    """Tokens of the prompt that were found in the cache."""


@dataclass(frozen=True)
class Completion:
    """A whole completion."""

    text: str
    token_ids: list[int]
    finish_reason: str
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=list)
    score: float | None = None
    """What a search ranked it by."""
    drafted: int = 0
    """Tokens guessed by speculative decoding."""
    accepted: int = 0
    """How many of the guesses were right."""


def token_logprobs(logits_TV: Tensor, tokens: list[int], top: int) -> list[TokenLogprob]:
    """The log-probability of each token under its row, and the `top` likeliest of the row."""
    if not tokens:
        return []
    log_TV = logits_TV.float().log_softmax(-1)
    chosen_T = log_TV.gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()
    best = log_TV.topk(top, dim=-1)
    tops = [tuple(zip(i, v, strict=True)) for i, v in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
    return [TokenLogprob(*parts) for parts in zip(tokens, chosen_T, tops, strict=True)]
