"""Choosing by compiled code against choosing by torch's operators: the same token, whatever the rows are like."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from wenfang.engine import SamplingParams, sampling
from wenfang.engine.sampling import Sampler, choose
from wenfang.grammar import Matcher

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")

RULES = [
    SamplingParams(),
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.8, top_p=0.95),
    SamplingParams(temperature=1.3, top_p=0.3),
    SamplingParams(top_p=0.9999),
    SamplingParams(temperature=0.7, top_k=40),
    SamplingParams(top_k=1),
    SamplingParams(top_k=1 << 20),
    SamplingParams(temperature=1.5, min_p=0.05),
    SamplingParams(min_p=1.0),
    SamplingParams(temperature=0.9, top_k=50, top_p=0.8, min_p=0.02),
    SamplingParams(temperature=0.0, logit_bias={0: 30.0}, repetition_penalty=1.4),
    SamplingParams(top_p=0.9, logit_bias={0: -50.0}, frequency_penalty=1.0, dry_multiplier=0.8),
]


def _rows(shape: str, N: int, V: int) -> torch.Tensor:
    noise = torch.randn(N, V, generator=torch.Generator().manual_seed(V))
    match shape:
        case "flat":
            return noise * 0.3
        case "peaked":
            return noise * 9
        case "equal":
            return torch.zeros(N, V)
        case "tied":  # As a head in few bits gives them; nuclei end within ties.
            return (noise * 4).round() / 2
        case "huge":
            return noise * 1e4
    return noise.masked_fill(noise < 0.5, -torch.inf)


def _matcher(seed: int, V: int) -> Matcher:
    """A grammar that allows some tokens at random."""
    matcher = Matcher(None, None, end_id=0, vocab_size=V)
    bits = np.random.default_rng(seed).random(-(-V // 32) * 32) < 0.3
    bits[V:] = False
    bits[V // 2] = True
    matcher.allowed_W = np.packbits(bits, bitorder="little").view(np.uint32)
    return matcher


def test_logits_are_afterwards_what_they_were() -> None:
    rules = [SamplingParams(), *(rule for rule in RULES if rule.logit_bias)]
    rules.append(SamplingParams(repetition_penalty=1.7, presence_penalty=0.5, dry_multiplier=2.0))
    logits = _rows("peaked", len(rules), 100)
    before = logits.clone()
    choose(logits, [Sampler(rule, [5, 3, 5, 3], written=[3, 5, 3]) for rule in rules])
    assert torch.equal(logits, before)


def _by_torch(monkeypatch: pytest.MonkeyPatch, logits: torch.Tensor, samplers: list[Sampler]) -> list[int]:
    with monkeypatch.context() as patch:
        patch.setattr(sampling, "can_sample", lambda: False)
        return choose(logits, samplers)


@pytest.mark.parametrize("shape", ["flat", "peaked", "equal", "tied", "huge", "banned"])
@pytest.mark.parametrize("V", [3, 100, 5911, 49152])
def test_the_token_is_that_of_torch(shape: str, V: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = 40 if V < 10_000 else 4
    logits = _rows(shape, len(RULES), V)
    for seed in range(rounds):
        samplers = [
            Sampler(
                replace(params, seed=seed), [0, 1], written=[1, 2, 1], matcher=_matcher(seed, V) if seed % 2 else None
            )
            for params in RULES
        ]
        assert choose(logits, samplers) == _by_torch(monkeypatch, logits, samplers), seed


def test_the_token_is_that_of_torch_for_the_largest_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.cat([_rows(shape, 2, 262_144) for shape in ("flat", "peaked", "tied")])
    samplers = [Sampler(SamplingParams(seed=3, temperature=0.9, top_k=k, top_p=0.95), [0]) for k in (0, 64) * 3]
    assert choose(logits, samplers) == _by_torch(monkeypatch, logits, samplers)


def test_many_draws_from_one_distribution_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logarithms that differ in their last bit change no winner in 20,000 races."""
    logits = torch.randn(500, generator=torch.Generator().manual_seed(0)).expand(20_000, -1)
    samplers = [Sampler(SamplingParams(seed=seed, top_p=0.9), [0]) for seed in range(20_000)]
    assert choose(logits, samplers) == _by_torch(monkeypatch, logits, samplers)


def test_logits_stay_as_they_are() -> None:
    logits = _rows("flat", 2, 70)
    before = logits.clone()
    choose(logits, [Sampler(SamplingParams(seed=1, top_k=5), [0]), Sampler(SamplingParams(logit_bias={3: 9.0}), [0])])
    assert torch.equal(logits, before)


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=0.0), SamplingParams(top_p=0.5)])
def test_some_token_is_chosen_where_none_can_be(params: SamplingParams) -> None:
    """The engine then fails the request; until it does, a token must be one of the vocabulary."""
    logits = torch.stack((torch.full((40,), -torch.inf), torch.full((40,), torch.nan)))
    assert all(0 <= token < 40 for token in choose(logits, [Sampler(params, [0])] * 2))


def test_a_temperature_next_to_nothing_takes_the_likeliest() -> None:
    logits = _rows("flat", 1, 300)
    for temperature in (1e-12, 1e-40, 1e-300):
        assert choose(logits, [Sampler(SamplingParams(temperature=temperature, top_p=0.9), [0])]) == [
            int(logits.argmax())
        ]
