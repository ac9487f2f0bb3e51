"""Batches are made while a step runs, and rows lie in a file."""

import resource
import signal
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from wenfang.train import packing
from wenfang.train.loader import Loader
from wenfang.train.objective import Batch
from wenfang.train.packing import IGNORED, Document, pack


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


def documents(number: int) -> Iterator[Document]:
    rng = np.random.default_rng(0)
    for _ in range(number):
        length = int(rng.integers(2, 33))
        yield rng.integers(0, 99, length, np.int32), np.broadcast_to(True, length)


def test_rows_lie_in_a_file_without_a_name(tmp_path: Path) -> None:
    packed = pack(documents(50), 32, folder=tmp_path)
    assert isinstance(packed.ids_NT, np.memmap)
    assert not list(tmp_path.iterdir())
    assert sorted(packed.targets_NT[packed.targets_NT != IGNORED]) == sorted(
        token for ids, _ in documents(50) for token in ids[1:].tolist()
    )


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "WINDOW_TOKENS", 50_000)
    peaks_bytes = []
    for number in (1000, 10_000):
        tracemalloc.start()
        packed = pack(documents(number), 32, folder=tmp_path)
        peaks_bytes.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert packed.waste < 0.05
    assert peaks_bytes[1] < 1.1 * peaks_bytes[0]


def test_a_full_disk_is_told_and_not_mapped(tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            pack(documents(200), 32, folder=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
