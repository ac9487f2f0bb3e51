"""Batches are made while a step runs, and rows lie in a file."""

import os
import resource
import signal
import subprocess
import sys
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


def packing_peak_bytes(number: int, folder: Path) -> int:
    packing.WINDOW_TOKENS = 50_000
    tracemalloc.start()
    packed = pack(documents(number), 32, folder=folder)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert packed.waste < 0.05
    return peak


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    """In a process of its own: what other tests' threads allocate meanwhile would be counted, too."""
    script = (
        "import sys; from pathlib import Path; from train.test_loader import packing_peak_bytes as peak\n"
        "print(*(peak(number, Path(sys.argv[1])) for number in (1_000, 10_000)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        check=True,
        text=True,
    )
    small, large = map(int, done.stdout.split())
    assert large < 1.1 * small


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
