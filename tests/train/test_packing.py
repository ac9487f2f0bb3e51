"""Packing against simple facts: nothing lost, nothing shared, nothing wasted that could be used."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wenfang.train import packing
from wenfang.train.packing import IGNORED, batch_rows, best_fit, grouped, pack, split_long

lengths = st.lists(st.integers(1, 20), min_size=1, max_size=60)


@given(lengths=lengths)
def test_best_fit_places_each_item_once_within_capacity(lengths: list[int]) -> None:
    bins = best_fit(lengths, 20)
    assert sorted(i for members in bins for i in members) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in members) <= 20 for members in bins)
    # Best fit leaves at most one bin less than half full, hence never needs twice the least number.
    assert sum(sum(lengths[i] for i in members) <= 10 for members in bins) <= 1


@given(lengths=lengths)
def test_every_token_but_the_first_is_a_target_once(lengths: list[int]) -> None:
    documents = [
        (list(range(100 * n, 100 * n + length + 1)), [True] * (length + 1)) for n, length in enumerate(lengths)
    ]
    packed = pack(documents, 20)
    learned = packed.targets_NT[packed.targets_NT != IGNORED]
    assert sorted(learned) == sorted(token for ids, _ in documents for token in ids[1:])
    real = packed.documents_NT >= 0
    assert (packed.targets_NT[real] - packed.ids_NT[real] == 1).all()  # Never across a document's border.
    assert (packed.positions_NT[real] == packed.ids_NT[real] % 100).all()


def test_what_is_not_learned_is_ignored() -> None:
    packed = pack([([1, 2, 3, 4], [False, False, True, True])], 5)
    assert packed.targets_NT[0].tolist() == [IGNORED, 3, 4, IGNORED, IGNORED]
    assert packed.waste == pytest.approx(0.4)


@given(length=st.integers(2, 60), context=st.integers(1, 15))
def test_long_documents_are_cut_without_loss(length: int, context: int) -> None:
    pieces = split_long((list(range(length)), [True] * length), context)
    assert all(2 <= len(ids) <= context + 1 for ids, _ in pieces)
    assert [token for ids, _ in pieces for token in ids[1:]] == list(range(1, length))


def test_groups_of_several_windows_number_the_documents_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "WINDOW_TOKENS", 500)  # Four documents.
    documents = [([n] * (2 + n % 7), [True] * (2 + n % 7)) for n in range(30)]
    groups = list(grouped(documents, 16))
    assert all(document is documents[number] for members in groups for number, document in members)
    assert sorted(number for members in groups for number, _ in members) == list(range(30))
    assert pack(documents, 16).ids_NT[:, 0].tolist() == [members[0][1][0][0] for members in groups]


def test_batches_visit_each_row_once_an_epoch_in_a_new_order() -> None:
    batches = [batch_rows(10, 5, step, seed=3) for step in range(4)]
    first, second = np.concatenate(batches[:2]), np.concatenate(batches[2:])
    assert sorted(first) == sorted(second) == list(range(10))
    assert first.tolist() != second.tolist()
    crossing = batch_rows(10, 4, 2, seed=3)  # Rows 8 and 9 of one epoch, then 0 and 1 of the next.
    assert crossing.tolist() == [*first[8:], *second[:2]]
