"""Each truncation rule against transformers where it has it, else against the paper's formula on single numbers."""

import math
import statistics

import pytest
import torch
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, TypicalLogitsWarper

from wenfang.engine import truncation

ROWS = torch.randn(40, 700, generator=torch.Generator().manual_seed(2)) * torch.linspace(0.05, 6, 40)[:, None]
"""From nearly flat (a nucleus of hundreds of tokens) to peaked."""


@pytest.mark.parametrize(
    ("rule", "judge", "values"),
    [
        (truncation.top_k, TopKLogitsWarper, [1, 7, 700, 5000]),
        (truncation.top_p, TopPLogitsWarper, [0.01, 0.5, 0.95, 0.999]),
        (truncation.min_p, MinPLogitsWarper, [0.001, 0.1, 1.0]),
        (truncation.typical, TypicalLogitsWarper, [0.05, 0.5, 0.95]),
    ],
)
def test_as_transformers(rule, judge, values: list[float]) -> None:
    for value in values:
        ours = rule(ROWS, torch.full((40, 1), float(value)))
        assert torch.equal(ours.isfinite(), judge(value)(torch.zeros(40, 1), ROWS).isfinite()), value
        assert torch.equal(ours[ours.isfinite()], ROWS[ours.isfinite()])


def test_each_row_has_its_own_value() -> None:
    kept = truncation.top_k(ROWS[:3], torch.tensor([[1.0], [5.0], [2.0]])).isfinite().sum(-1)
    assert kept.tolist() == [1, 5, 2]


def test_top_n_sigma_is_the_papers_threshold() -> None:
    for row in ROWS[::9]:
        numbers = row.tolist()
        bound = max(numbers) - 1.5 * statistics.pstdev(numbers)
        kept = truncation.top_n_sigma(row[None], torch.tensor([[1.5]]))[0].isfinite().tolist()
        assert kept == [x >= bound for x in numbers]
        cooled = truncation.top_n_sigma(row[None] / 0.3, torch.tensor([[1.5]]))[0].isfinite().tolist()
        assert cooled == kept


def test_excluding_top_choices_keeps_the_least_of_them() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.94, 0.02, 0.02, 0.02]]).log()
    kept = truncation.exclude_top_choices(logits, torch.tensor([[0.12], [0.12]])).isfinite().tolist()
    assert kept == [[False, False, True, True], [True, True, True, True]]


def test_mirostat_keeps_what_is_not_too_surprising() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.2, 0.05]]).log()
    for mu, kept in ((math.log2(1 / 0.22), 2), (0.1, 1), (9.0, 4)):
        assert int(truncation.mirostat(logits, torch.tensor([[mu]])).isfinite().sum()) == kept


@pytest.mark.parametrize(
    "rule",
    [
        truncation.top_k, truncation.top_p, truncation.min_p, truncation.typical, truncation.top_n_sigma,
        truncation.exclude_top_choices, truncation.mirostat,
    ],
)  # fmt: skip
def test_what_is_excluded_already_stays_so_and_counts_for_nothing(rule) -> None:
    masked = torch.cat((ROWS, torch.full((40, 50), -torch.inf)), dim=1)
    value = torch.full((40, 1), 0.5 if rule is not truncation.top_k else 5.0)
    expected = torch.cat((rule(ROWS, value), torch.full((40, 50), -torch.inf)), dim=1)
    assert torch.equal(rule(masked, value).isfinite(), expected.isfinite())
