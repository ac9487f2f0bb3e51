"""Tensors on large pages are what they were; the system's own account says where they lie."""

import math
import mmap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from wenfang.native.pages import LINE, LargePages

HAS_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


SHAPES = [((5,), torch.int8), ((700, 900), torch.bfloat16), ((3, 1, 2), torch.float32), ((0, 4), torch.float32)]


def _place() -> list[torch.Tensor]:
    pages = LargePages([math.prod(shape) * dtype.itemsize for shape, dtype in SHAPES])
    return [pages.empty(*shape, dtype=dtype) for shape, dtype in SHAPES]


def test_tensors_are_as_asked_for_begin_at_cache_lines_and_do_not_overlap() -> None:
    tensors = _place()
    for number, (tensor, (shape, dtype)) in enumerate(zip(tensors, SHAPES, strict=True)):
        assert (tensor.shape, tensor.dtype) == (shape, dtype)
        assert not tensor.numel() or tensor.data_ptr() % LINE == 0
        tensor.fill_(number)
    assert all((tensor == number).all() for number, tensor in enumerate(tensors))


def test_what_is_beyond_the_room_lies_elsewhere() -> None:
    pages = LargePages([64])
    first, second = pages.empty(64, dtype=torch.uint8), pages.empty(64, dtype=torch.uint8)
    first.fill_(1)
    second.fill_(2)
    assert (first == 1).all()


@pytest.mark.parametrize("room", [1 << 20, 0])
def test_zeros_are_zeros_with_room_and_without(room: int) -> None:
    pages = LargePages([room])
    for shape, dtype in SHAPES:
        assert torch.equal(pages.zeros(*shape, dtype=dtype), torch.zeros(shape, dtype=dtype))


@pytest.mark.skipif(not HAS_PAGES.is_file() or "[never]" in HAS_PAGES.read_text(), reason="no large pages here")
def test_the_system_was_asked_for_large_pages() -> None:
    """`hg` among the flags of a mapping (proc_pid_smaps(5)) is that advice; with `sh` it would not be followed."""
    tensor = LargePages([4 << 20]).empty(4 << 20, dtype=torch.uint8)
    flags = _mapping(tensor.data_ptr())["VmFlags"].split()
    assert "hg" in flags
    assert "sh" not in flags


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
def test_where_there_are_none_tensors_lie_anywhere(
    lack: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    lack(monkeypatch)
    assert [(tuple(tensor.shape), tensor.dtype) for tensor in _place()] == SHAPES
