"""How the next token is chosen: what a grammar allows, penalties, temperature, truncation, then one draw.

The order is that of `transformers`: bias and penalties first, then temperature, then truncation. A step runs only for
the rows that ask for it, so plain requests pay for nothing. The usual rules run in one call of compiled code, the rest,
and all without a compiler, in torch; both choose the same. Shapes: N rows (requests), V vocabulary.
"""

import math
import secrets
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from wenfang.engine import penalties, truncation
from wenfang.engine.noise import TOKEN, XTC, Key, exponential, key_to_int, uniform
from wenfang.engine.params import TRUNCATION_OFF, SamplingParams
from wenfang.grammar import Matcher, fill_masks
from wenfang.native.sampler import Row, can_sample, sample

LONGEST_SEED = 63
COLDEST = 1e-30
"""The lowest temperature that leaves logits finite; one below it is as good as none."""


@dataclass
class Sampler:
    """One request's sampling under way.

    Args:
        params: what was asked.
        prompt: token ids before the completion.
        breakers: ids of the tokens that are `params.dry_sequence_breakers`.
        matcher: says which tokens the request's grammar allows; the caller tells it what it accepts.
    """

    params: SamplingParams
    prompt: Sequence[int]
    breakers: frozenset[int] = frozenset()
    matcher: Matcher | None = None
    written: list[int] = field(default_factory=list)
    """Token ids of the completion so far; the caller appends what it accepts."""
    seed: int = -1
    mu: float = 0.0
    """Mirostat's running bound on the surprise, in bits."""

    def __post_init__(self) -> None:
        self.seed = secrets.randbits(LONGEST_SEED) if self.params.seed is None else self.params.seed
        self.mu = 2 * self.params.mirostat_tau

    @property
    def key(self) -> Key:
        """What the noise for the next token follows from."""
        return self.seed, len(self.written), TOKEN

    @cached_property
    def bias(self) -> tuple[Tensor, Tensor]:
        """Tokens and what is added to their fp32 logits."""
        tokens, values = list(self.params.logit_bias), list(self.params.logit_bias.values())
        return torch.tensor(tokens), torch.tensor(values, dtype=torch.float32)

    @property
    def usual(self) -> bool:
        """Whether compiled code knows all rules that are asked for."""
        p = self.params
        return p.typical_p == 1.0 and not (p.top_n_sigma or p.xtc_probability or p.mirostat_tau)

    @property
    def history(self) -> list[int]:
        """Prompt and completion."""
        return [*self.prompt, *self.written]

    def after(self, tokens: Sequence[int]) -> "Sampler":
        """The same sampling once these tokens, too, are written: what a draft for the tokens after them is drawn by."""
        later = copy(self)
        later.written = [*self.written, *tokens]
        later.matcher = None  # It stands before these tokens; a guess may well be wrong.
        return later


Truncation = Callable[[Tensor, Tensor], Tensor]

_TRUNCATIONS: dict[str, Truncation] = {
    "top_n_sigma": truncation.top_n_sigma,
    "top_k": truncation.top_k,
    "top_p": truncation.top_p,
    "min_p": truncation.min_p,
    "typical_p": truncation.typical,
}


def choose(logits_NV: Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """The next token of each row. Depends on the row's logits and sampler alone, whatever rows are beside it.

    The draw is a race of exponential variables (equal in law to sampling from the softmax): token i arrives at
    E_i / p_i and the first wins. E_i follows from the request's seed, the position and i alone, so two distributions
    that are close nearly always choose the same token — what speculative decoding lives on.
    """
    fill_masks([sampler.matcher for sampler in samplers if sampler.matcher is not None])
    logits_NV = logits_NV.float()
    compiles = logits_NV.device.type == "cpu" and logits_NV.stride(1) == 1 and can_sample()
    chosen = [0] * len(samplers)
    for way, compiled in ((_choose_compiled, True), (_choose_torch, False)):
        rows = [i for i, sampler in enumerate(samplers) if (compiles and sampler.usual) is compiled]
        for i, token in zip(rows, way(logits_NV, samplers, rows) if rows else (), strict=True):
            chosen[i] = token
    return chosen


def _choose_compiled(logits_NV: Tensor, samplers: Sequence[Sampler], which: Sequence[int]) -> list[int]:
    """The next tokens of these rows."""
    start, step = logits_NV.data_ptr(), logits_NV.stride(0) * logits_NV.itemsize
    penalised = {i: _penalise_row(logits_NV[i].clone(), samplers[i]) for i in which if _penalised(samplers[i].params)}
    rows = []
    for i in which:
        params, matcher = samplers[i].params, samplers[i].matcher
        rows.append(
            Row(
                penalised[i].data_ptr() if i in penalised else start + i * step,
                None if matcher is None else matcher.address,
                key_to_int(samplers[i].key) if params.temperature else 0,
                *(params.temperature, params.top_p, params.min_p, params.top_k),
            )
        )
    return sample(rows, logits_NV.shape[1])


def _choose_torch(logits_NV: Tensor, samplers: Sequence[Sampler], which: Sequence[int]) -> list[int]:
    """The same, whatever the rules."""
    logits_NV, samplers = _rows(logits_NV, which), [samplers[i] for i in which]
    scores_NV = warp(penalise(constrain(logits_NV, samplers), samplers), samplers)
    likeliest_N = scores_NV.argmax(-1)
    drawn = [i for i, s in enumerate(samplers) if s.params.temperature > 0.0]
    if not drawn:
        return likeliest_N.tolist()
    noise_NV = exponential([samplers[i].key for i in drawn], scores_NV.shape[1])
    arrival_NV = noise_NV / _rows(scores_NV, drawn).softmax(-1)
    return likeliest_N.index_copy(0, torch.tensor(drawn), arrival_NV.argmin(-1)).tolist()


def constrain(logits_NV: Tensor, samplers: Sequence[Sampler]) -> Tensor:
    """Logits with the tokens that a row's grammar forbids at -inf."""
    rows = [i for i, s in enumerate(samplers) if s.matcher is not None]
    if not rows:
        return logits_NV
    matchers = [sampler.matcher for sampler in samplers if sampler.matcher is not None]
    fill_masks(matchers)
    blocked_RV = torch.from_numpy(np.stack([matcher.blocked() for matcher in matchers]))
    allowed_RV = _rows(logits_NV, rows).masked_fill(blocked_RV.to(logits_NV.device), -torch.inf)
    return allowed_RV if len(rows) == len(samplers) else logits_NV.index_copy(0, torch.tensor(rows), allowed_RV)


def penalise(logits_NV: Tensor, samplers: Sequence[Sampler]) -> Tensor:
    """fp32 logits with bias and penalties applied."""
    penalised = [i for i, sampler in enumerate(samplers) if _penalised(sampler.params)]
    if penalised:
        logits_NV = logits_NV.clone()
        for i in penalised:
            _penalise_row(logits_NV[i], samplers[i])
    return logits_NV


def warp(logits_NV: Tensor, samplers: Sequence[Sampler]) -> Tensor:
    """Logits after temperature and truncation. Rows at temperature 0 stay as they are."""
    drawn = [i for i, s in enumerate(samplers) if s.params.temperature > 0.0]
    logits_NV = _apply(logits_NV, drawn, _divide, [s.params.temperature for s in samplers], neutral=1.0)
    for name, rule in _TRUNCATIONS.items():
        values = [getattr(s.params, name) for s in samplers]
        logits_NV = _apply(logits_NV, drawn, rule, values, neutral=TRUNCATION_OFF[name])
    excluding = [i for i in drawn if _excludes(samplers[i])]
    thresholds = [s.params.xtc_threshold for s in samplers]
    logits_NV = _apply(logits_NV, excluding, truncation.exclude_top_choices, thresholds)
    steered = [i for i in drawn if samplers[i].params.mirostat_tau]
    return _apply(logits_NV, steered, truncation.mirostat, [s.mu for s in samplers])


def observe(logits_V: Tensor, token: int, sampler: Sampler) -> None:
    """Tell a Mirostat sampler how surprising the token was that it chose; call before the token is accepted."""
    params = sampler.params
    if params.mirostat_tau and params.temperature:
        scores_1V = penalise(constrain(logits_V.float()[None], [sampler]), [sampler])
        log_V = (scores_1V[0] / max(params.temperature, COLDEST)).log_softmax(-1)
        sampler.mu -= params.mirostat_eta * (-float(log_V[token]) / math.log(2) - params.mirostat_tau)


def _penalised(params: SamplingParams) -> bool:
    return bool(
        params.logit_bias
        or params.repetition_penalty != 1.0
        or params.presence_penalty
        or params.frequency_penalty
        or params.dry_multiplier
    )


def _penalise_row(logits_V: Tensor, sampler: Sampler) -> Tensor:
    """In place."""
    params = sampler.params
    if params.logit_bias:
        penalties.bias(logits_V, *sampler.bias)
    if params.repetition_penalty != 1.0:
        penalties.repetition(logits_V, sampler.history, params.repetition_penalty)
    if (params.presence_penalty or params.frequency_penalty) and sampler.written:
        penalties.presence_and_frequency(logits_V, sampler.written, params.presence_penalty, params.frequency_penalty)
    if params.dry_multiplier:
        penalties.dry(
            logits_V,
            sampler.history,
            multiplier=params.dry_multiplier,
            base=params.dry_base,
            allowed_length=params.dry_allowed_length,
            breakers=sampler.breakers,
        )
    return logits_V


def _excludes(sampler: Sampler) -> bool:
    """Whether XTC's die falls for this position."""
    chance = sampler.params.xtc_probability
    return chance > 0.0 and uniform((sampler.seed, len(sampler.written), XTC)) < chance


def _divide(logits_NV: Tensor, temperature_N1: Tensor) -> Tensor:
    return logits_NV / temperature_N1.clamp_min(COLDEST)


def _apply(
    logits_NV: Tensor, rows: Sequence[int], rule: Truncation, values: Sequence[float], neutral: float | None = None
) -> Tensor:
    """Run a rule on those of `rows` whose value is not `neutral`."""
    chosen = [i for i in rows if values[i] != neutral]
    if not chosen:
        return logits_NV
    changed_NV = rule(_rows(logits_NV, chosen), torch.tensor([[values[i]] for i in chosen], dtype=torch.float32))
    return changed_NV if len(chosen) == len(values) else logits_NV.index_copy(0, torch.tensor(chosen), changed_NV)


def _rows(values_NV: Tensor, rows: Sequence[int]) -> Tensor:
    return values_NV if len(rows) == values_NV.shape[0] else values_NV[list(rows)]
