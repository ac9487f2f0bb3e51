"""Facts about this machine, against what the system says elsewhere."""

import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from wenfang.core.hardware import detect, free_disk_bytes, matmul_flops, peak_memory_bytes


def test_cores_are_those_this_process_may_use() -> None:
    before = os.sched_getaffinity(0)
    detect.cache_clear()
    try:
        os.sched_setaffinity(0, {min(before)})
        assert detect().cores == 1
    finally:
        os.sched_setaffinity(0, before)
        detect.cache_clear()
    assert detect().cores == len(before)


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="needs Linux")
def test_memory_is_what_the_kernel_says() -> None:
    told = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    assert told
    assert detect().memory_bytes == pytest.approx(int(told[1]) * 1024, rel=0.02)


def test_the_processor_has_a_name_and_its_arithmetic_is_known() -> None:
    machine = detect()
    assert machine.processor
    if Path("/proc/cpuinfo").exists():
        flags = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text()))
        assert machine.bf16 == bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def test_a_compiler_is_found_by_name_or_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    detect.cache_clear()
    assert not detect().compiler
    (tmp_path / "my-compiler").write_text("#!/bin/sh\n")
    (tmp_path / "my-compiler").chmod(0o755)
    monkeypatch.setenv("CXX", "my-compiler")
    detect.cache_clear()
    assert detect().compiler
    monkeypatch.undo()
    detect.cache_clear()


def test_free_disk_of_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    free = free_disk_bytes(tmp_path / "not" / "there" / "yet")
    assert free == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)


def test_peak_memory_grows_with_what_was_used() -> None:
    before = peak_memory_bytes()
    assert before > 10_000_000  # More than a bare interpreter: bytes, not kilobytes.
    ballast = bytearray(before + 50_000_000)
    ballast[::4096] = b"x" * len(ballast[::4096])
    assert peak_memory_bytes() >= before + 40_000_000


def test_matrix_products_are_timed_once_and_in_a_plausible_range() -> None:
    first = matmul_flops(torch.float32)
    assert 1e8 < first < 1e15  # A Raspberry Pi; a hundred sockets.
    assert matmul_flops(torch.float32) == first
