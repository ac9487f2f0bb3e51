"""Penalties against transformers, OpenAI's formula and DRY's published definition."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor, SequenceBiasLogitsProcessor

from wenfang.engine import penalties

LOGITS = torch.randn(30, generator=torch.Generator().manual_seed(5)) * 3


def test_repetition_as_transformers() -> None:
    history = [3, 7, 7, 29, 0]
    judge = RepetitionPenaltyLogitsProcessor(penalty=1.3)
    expected = judge(torch.tensor([history]), LOGITS[None])[0]
    torch.testing.assert_close(penalties.repetition(LOGITS.clone(), history, 1.3), expected)


def test_bias_as_transformers() -> None:
    judge = SequenceBiasLogitsProcessor([[[4], -7.5], [[11], 2.0]])
    expected = judge(torch.tensor([[1, 2]]), LOGITS[None])[0]
    torch.testing.assert_close(
        penalties.bias(LOGITS.clone(), torch.tensor([4, 11]), torch.tensor([-7.5, 2.0])), expected
    )


def test_presence_and_frequency_as_openai_defines_them() -> None:
    written = [3, 7, 7, 7]
    ours = penalties.presence_and_frequency(LOGITS.clone(), written, 0.6, 0.25)
    for token in range(30):
        count = written.count(token)
        assert abs(float(ours[token]) - (float(LOGITS[token]) - count * 0.25 - (count > 0) * 0.6)) < 1e-5


def lengths_by_definition(history: list[int], breakers: frozenset[int]) -> dict[int, int]:
    """For each candidate: the longest n such that the text's last n tokens, none a breaker, occurred before it."""
    longest: dict[int, int] = {}
    for candidate in set(history) - breakers:
        for n in range(1, len(history)):
            ending = history[-n:]
            before = [history[i : i + n] for i in range(len(history) - n) if history[i + n] == candidate]
            if ending in before and not breakers & set(ending):
                longest[candidate] = n
    return longest


@given(history=st.lists(st.integers(0, 3), max_size=25), breakers=st.frozensets(st.integers(0, 3), max_size=1))
def test_dry_finds_the_longest_repetition_each_token_would_prolong(history: list[int], breakers: frozenset) -> None:
    assert penalties.repetition_lengths(history, breakers) == lengths_by_definition(history, breakers)


def test_dry_takes_multiplier_times_base_to_the_excess_length() -> None:
    history = [1, 2, 3, 4, 9, 1, 2, 3]  # 4 would prolong a repetition of three tokens.
    ours = penalties.dry(LOGITS.clone(), history, multiplier=0.8, base=1.75, allowed_length=2, breakers=frozenset())
    expected = LOGITS.clone()
    expected[4] -= 0.8 * 1.75 ** (3 - 2)
    torch.testing.assert_close(ours, expected)
    free = penalties.dry(LOGITS.clone(), history, multiplier=0.8, base=1.75, allowed_length=4, breakers=frozenset())
    assert torch.equal(free, LOGITS)
