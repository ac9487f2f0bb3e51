"""The sampler against the distribution it claims to draw from."""

import pytest
import torch

from wenfang.core.errors import InputError
from wenfang.engine import SamplingParams
from wenfang.engine.sampling import sample

LOGITS = torch.tensor([1.0, 3.0, 2.0, -1.0, 0.5])


def frequencies(params: SamplingParams, draws: int = 20_000) -> torch.Tensor:
    uniform = [(i + 0.5) / draws for i in range(draws)]
    tokens = sample(LOGITS.expand(draws, -1), [params] * draws, uniform)
    return torch.bincount(torch.tensor(tokens), minlength=len(LOGITS)) / draws


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature(temperature: float) -> None:
    expected = (LOGITS / temperature).softmax(0)
    # Evenly spaced uniforms: each frequency is off by at most one draw at either end of its interval.
    torch.testing.assert_close(frequencies(SamplingParams(temperature=temperature)), expected, atol=2e-4, rtol=0)


def test_top_k_renormalises_the_k_likeliest() -> None:
    expected = torch.where(torch.tensor([False, True, True, False, False]), LOGITS, -torch.inf).softmax(0)
    torch.testing.assert_close(frequencies(SamplingParams(top_k=2)), expected, atol=2e-4, rtol=0)


def test_top_p_keeps_the_smallest_sufficient_set() -> None:
    probabilities = LOGITS.softmax(0)  # Sorted: 0.63, 0.23, 0.09, 0.05, 0.01.
    assert float(probabilities[1]) < 0.7 < float(probabilities[1] + probabilities[2])
    kept = (frequencies(SamplingParams(top_p=0.7)) > 0).tolist()
    assert kept == [False, True, True, False, False]
    assert (frequencies(SamplingParams(top_p=0.01)) > 0).tolist() == [False, True, False, False, False]


def test_zero_temperature_is_the_likeliest_even_beside_sampled_rows() -> None:
    mixed = sample(LOGITS.expand(2, -1), [SamplingParams(temperature=0), SamplingParams()], [0.999, 0.999])
    assert mixed[0] == 1
    assert sample(LOGITS[None], [SamplingParams(temperature=0)], [0.999]) == [1]


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1},
        {"max_tokens": 0}, {"stop": ("",)}, {"seed": -1}, {"temperature": float("inf")},
    ],
)  # fmt: skip
def test_values_out_of_range_are_named(values: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"`{next(iter(values))}`"):
        SamplingParams(**values)
