"""Choosing a token, against the distribution it claims to draw from and whatever else is in the batch."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from wenfang.core.errors import InputError
from wenfang.engine import SamplingParams
from wenfang.engine.noise import exponential, uniform
from wenfang.engine.sampling import Sampler, choose, observe, penalise, warp

LOGITS = torch.tensor([1.0, 3.0, 2.0, -1.0, 0.5])
DRAWS = 20_000


def draw(params: SamplingParams, logits: torch.Tensor = LOGITS) -> torch.Tensor:
    """Frequencies of tokens over many seeds."""
    samplers = [Sampler(params_with_seed(params, i), [0]) for i in range(DRAWS)]
    tokens = choose(logits.expand(DRAWS, -1), samplers)
    return torch.bincount(torch.tensor(tokens), minlength=len(logits)) / DRAWS


def params_with_seed(params: SamplingParams, seed: int) -> SamplingParams:
    return SamplingParams(**{**vars(params), "seed": seed})


def assert_drawn_from(frequencies: torch.Tensor, expected: torch.Tensor) -> None:
    # Four standard deviations of a binomial share; the seeds are fixed, so this never flickers.
    assert bool(((frequencies - expected).abs() <= 4 * (expected * (1 - expected) / DRAWS).sqrt() + 1e-9).all())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature(temperature: float) -> None:
    assert_drawn_from(draw(SamplingParams(temperature=temperature)), (LOGITS / temperature).softmax(0))


def test_top_k_renormalises_the_k_likeliest() -> None:
    expected = torch.where(torch.tensor([False, True, True, False, False]), LOGITS, -torch.inf).softmax(0)
    assert_drawn_from(draw(SamplingParams(top_k=2)), expected)


def test_the_noise_is_exponential_and_its_rows_and_columns_unrelated() -> None:
    noise = exponential([(seed, position, 0) for seed in range(50) for position in range(20)], 200).double()
    assert float(noise.min()) > 0
    # Kolmogorov-Smirnov: sup |F̂ - F| < 1.95/√n at 0.1%.
    sample = noise.flatten().sort().values
    n = len(sample)
    distance = (torch.arange(1, n + 1) / n - (1 - (-sample).exp())).abs().max()
    assert float(distance) < 1.95 / math.sqrt(n)
    for left, right in ((noise[:-1], noise[1:]), (noise[:, :-1], noise[:, 1:])):
        correlation = torch.corrcoef(torch.stack((left.flatten(), right.flatten())))[0, 1]
        assert abs(float(correlation)) < 4 / math.sqrt(n)


def test_zero_temperature_is_the_likeliest_even_beside_sampled_rows() -> None:
    samplers = [Sampler(SamplingParams(temperature=0), [0]), Sampler(SamplingParams(temperature=2, seed=3), [0])]
    assert choose(LOGITS.expand(2, -1), samplers)[0] == 1
    assert choose(LOGITS[None], samplers[:1]) == [1]


@pytest.mark.parametrize("temperature", [1e-300, 1e-38, 1e-30])
@pytest.mark.parametrize("rule", [{"typical_p": 0.5}, {"top_n_sigma": 1.0}, {"xtc_probability": 1.0}, {}], ids=str)
def test_next_to_no_temperature_is_as_good_as_none(temperature: float, rule: dict[str, float]) -> None:
    logits = torch.linspace(-40, 40, 64).roll(11)
    assert choose(logits[None], [Sampler(SamplingParams(temperature=temperature, seed=1, **rule), [0])]) == [10]
    sampler = Sampler(SamplingParams(temperature=temperature, mirostat_tau=3.0, seed=1), [0])
    assert choose(logits[None], [sampler]) == [10]
    observe(logits, 10, sampler)
    assert math.isfinite(sampler.mu)


@pytest.mark.parametrize(
    ("values", "judges"),
    [
        ({"temperature": 0.7, "top_k": 9}, [TemperatureLogitsWarper(0.7), TopKLogitsWarper(9)]),
        ({"top_k": 20, "top_p": 0.8}, [TopKLogitsWarper(20), TopPLogitsWarper(0.8)]),
        ({"temperature": 1.5, "min_p": 0.1}, [TemperatureLogitsWarper(1.5), MinPLogitsWarper(0.1)]),
        (
            {"top_p": 0.9, "min_p": 0.05, "typical_p": 0.7},
            [TopPLogitsWarper(0.9), MinPLogitsWarper(0.05), TypicalLogitsWarper(0.7)],
        ),
    ],
)
def test_rules_together_act_in_the_order_of_transformers(values: dict, judges: list) -> None:
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(1)) * 3
    expected = LogitsProcessorList(judges)(torch.zeros(6, 1, dtype=torch.long), logits)
    torch.testing.assert_close(warp(logits, [Sampler(SamplingParams(**values), [0])] * 6), expected)


RULES = st.fixed_dictionaries(
    {"seed": st.integers(0, 1000), "temperature": st.sampled_from([0.0, 0.7, 1.0, 1.3])},
    optional={
        "top_k": st.integers(1, 40),
        "top_p": st.floats(0.05, 1.0),
        "min_p": st.floats(0.0, 0.9),
        "typical_p": st.floats(0.05, 1.0),
        "top_n_sigma": st.floats(0.1, 3.0),
        "xtc_probability": st.just(0.5),
        "repetition_penalty": st.floats(0.8, 1.5),
        "frequency_penalty": st.floats(-1, 1),
        "dry_multiplier": st.just(0.8),
        "logit_bias": st.dictionaries(st.integers(0, 63), st.floats(-5, 5), max_size=3),
    },
).filter(lambda rule: rule["temperature"] or "xtc_probability" not in rule)


@given(rules=st.lists(RULES, min_size=1, max_size=5), salt=st.integers(0, 99))
def test_a_row_among_others_equals_the_row_alone(rules: list[dict], salt: int) -> None:
    logits = torch.randn(len(rules), 64, generator=torch.Generator().manual_seed(salt)) * 2
    history = torch.randint(0, 64, (len(rules), 12), generator=torch.Generator().manual_seed(salt)).tolist()
    samplers = [
        Sampler(SamplingParams(**rule), past[:6], written=past[6:]) for rule, past in zip(rules, history, strict=True)
    ]
    together = warp(penalise(logits, samplers), samplers)
    for i, sampler in enumerate(samplers):
        assert torch.equal(together[i : i + 1], warp(penalise(logits[i : i + 1], [sampler]), [sampler]))
        assert choose(logits, samplers)[i] == choose(logits[i : i + 1], [sampler])[0]


def test_xtc_falls_as_often_as_asked_and_excludes_all_top_choices_but_the_least() -> None:
    probabilities = LOGITS.softmax(0)  # 0.09, 0.63, 0.23, 0.01, 0.05
    excluded = torch.where(torch.tensor([False, True, False, False, False]), -torch.inf, LOGITS).softmax(0)
    frequencies = draw(SamplingParams(xtc_probability=0.3, xtc_threshold=0.2))
    assert_drawn_from(frequencies, 0.7 * probabilities + 0.3 * excluded)


def test_mirostat_follows_its_paper() -> None:
    generator = torch.Generator().manual_seed(4)
    sampler = Sampler(SamplingParams(mirostat_tau=3.0, mirostat_eta=0.2, seed=1), [0])
    mu = 6.0
    surprises = []
    for _ in range(300):
        logits = torch.randn(200, generator=generator) * 2
        bits = -logits.log_softmax(0) / math.log(2)
        assert torch.equal(warp(logits[None], [sampler])[0].isfinite(), bits <= max(mu, float(bits.min())))
        (token,) = choose(logits[None], [sampler])
        observe(logits, token, sampler)
        sampler.written.append(token)
        mu -= 0.2 * (float(bits[token]) - 3.0)
        assert sampler.mu == pytest.approx(mu, abs=1e-3)
        surprises.append(float(bits[token]))
    # The mean observed surprise settles at the target: what the algorithm is for.
    assert sum(surprises[50:]) / 250 == pytest.approx(3.0, abs=0.1)


def test_a_uniform_number_is_its_keys_alone() -> None:
    values = [uniform((7, position, 1)) for position in range(2000)]
    assert values == [uniform((7, position, 1)) for position in range(2000)]
    assert sum(values) / 2000 == pytest.approx(0.5, abs=4 / math.sqrt(12 * 2000))


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1},
        {"max_tokens": 0}, {"stop": ("",)}, {"seed": -1}, {"temperature": float("inf")}, {"min_p": 1.1},
        {"typical_p": 0.0}, {"xtc_threshold": 0.6}, {"logit_bias": {-1: 0.0}}, {"logit_bias": {1: float("nan")}},
        {"mirostat_tau": 1.0, "top_k": 3}, {"prompt_logprobs": True}, {"logprobs": 21}, {"dry_base": 0.5},
        {"mirostat_tau": 1.0, "temperature": 0.0}, {"xtc_probability": 0.5, "temperature": 0.0},
    ],
)  # fmt: skip
def test_values_out_of_range_are_named(values: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"`{next(iter(values))}`"):
        SamplingParams(**values)
