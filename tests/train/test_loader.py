"""Batches are made while a step runs, and rows lie in a file."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from wenfang.train.loader import Loader
from wenfang.train.objective import Batch
from wenfang.train.packing import pack


def batch(step: int) -> Batch:
    return Batch({"step": torch.tensor(step)}, count=1, tokens=1)


def numbers(batches: list[Batch]) -> list[int]:
    return [int(each.tensors["step"]) for each in batches]


def test_the_next_batch_is_made_while_a_step_runs() -> None:
    made = threading.Event()

    def make(step: int) -> list[Batch]:
        time.sleep(0.05)
        if step == 1:
            made.set()
        return [batch(step), batch(step)]

    loader = Loader(make, torch.device("cpu"))
    assert numbers(loader.take(0)) == [0, 0]
    assert loader.waited_s >= 0.05  # Nobody could have made the first one ahead.
    assert made.wait(5)
    time.sleep(0.01)
    assert numbers(loader.take(1)) == [1, 1]
    assert loader.waited_s < 0.04
    assert numbers(loader.take(7)) == [7, 7]  # Whatever was made ahead, the step asked for comes.
    loader.close()


def test_what_goes_wrong_behind_a_step_is_told_where_the_batch_is_asked_for() -> None:
    def make(step: int) -> list[Batch]:
        if step == 1:
            raise ValueError("step 1")
        return [batch(step)]

    loader = Loader(make, torch.device("cpu"))
    loader.take(0)
    with pytest.raises(ValueError, match="step 1"):
        loader.take(1)
    loader.close()


def test_rows_on_disk_are_those_in_memory_and_leave_no_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    documents = [(rng.integers(0, 99, n).tolist(), [True] * int(n)) for n in rng.integers(2, 33, 50)]
    mapped, held = pack(documents, 32, folder=tmp_path), pack(documents, 32)
    for name in ("ids_NT", "targets_NT", "documents_NT", "positions_NT"):
        assert isinstance(getattr(mapped, name), np.memmap)
        np.testing.assert_array_equal(getattr(mapped, name), getattr(held, name))
    assert not list(tmp_path.iterdir())
