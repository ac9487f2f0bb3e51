"""Tensors on large pages are what they were; the system's own account says where they lie."""

import mmap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from wenfang.native.pages import LINE, on_large_pages

TENSORS = [torch.arange(5, dtype=torch.int8), torch.randn(700, 900).bfloat16(), torch.randn(3, 1, 2), torch.empty(0, 4)]
HAS_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def test_copies_are_equal_and_begin_at_cache_lines() -> None:
    copies = on_large_pages(TENSORS)
    for copy, tensor in zip(copies, TENSORS, strict=True):
        assert copy.dtype == tensor.dtype
        assert torch.equal(copy, tensor)
        assert not copy.numel() or copy.data_ptr() % LINE == 0
    copies[0][0] = 7  # It is its own memory.
    assert TENSORS[0][0] == 0


@pytest.mark.skipif(not HAS_PAGES.is_file() or "[never]" in HAS_PAGES.read_text(), reason="no large pages here")
def test_the_system_was_asked_for_large_pages() -> None:
    """`hg` among the flags of a mapping (proc_pid_smaps(5)) is that advice."""
    (copy,) = on_large_pages([torch.ones(4 << 20, dtype=torch.uint8)])
    assert "hg" in _mapping(copy.data_ptr())["VmFlags"].split()


def _mapping(address: int) -> dict[str, str]:
    """What the kernel tells of the mapping that holds an address."""
    found: dict[str, str] = {}
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if "-" in name.split()[0]:
            first, last = (int(end, 16) for end in line.split()[0].split("-"))
            inside = first <= address < last
        elif inside:
            found[name] = value
    return found


def _refuse(*_: object) -> None:
    raise OSError(22, "Invalid argument")


def _deaf(patch: pytest.MonkeyPatch) -> None:
    """A kernel that does not take the advice."""

    class Deaf(mmap.mmap):
        madvise = _refuse

    patch.setattr(mmap, "mmap", Deaf)


@pytest.mark.parametrize("lack", [lambda patch: patch.delattr(mmap, "MADV_HUGEPAGE"), _deaf])
def test_where_there_are_none_tensors_stay_where_they_are(
    lack: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    lack(monkeypatch)
    assert [tensor.data_ptr() for tensor in on_large_pages(TENSORS)] == [tensor.data_ptr() for tensor in TENSORS]
