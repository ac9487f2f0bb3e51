"""The kernel against torch's own operators in fp64, forward and backward."""

import ctypes
import functools
import shutil
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from native.processors import compiled_for

from wenfang.native import silu_gate, takes_gate

KERNEL = sys.modules["wenfang.native.silu_gate"]  # In the package its name is the function's.
pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ctypes.CDLL]:
    """The kernel for a processor, emulated where need be."""
    folder = tmp_path_factory.mktemp("kernel")
    return functools.cache(lambda processor: compiled_for(processor, KERNEL.SOURCE, folder))


@pytest.mark.parametrize("processor", ["this", "avx512", "x86-64"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (3, 5, 64), (2, 4101)])
def test_values_and_gradients_are_those_of_torch(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    processor: str,
    libraries: Callable[[str], ctypes.CDLL],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    if processor != "this":
        library = libraries(processor)
        monkeypatch.setattr(KERNEL, "_library", lambda: library)
    gate, up = (10 * torch.randn(shape)).to(dtype).requires_grad_(), torch.randn(shape, dtype=dtype, requires_grad=True)
    slope = torch.randn(shape[::-1], dtype=dtype).permute(*range(len(shape))[::-1])  # Not in the order of memory.
    ours = silu_gate(gate, up)
    ours.backward(slope)
    wide_gate, wide_up = (x.detach().double().requires_grad_() for x in (gate, up))
    theirs = F.silu(wide_gate) * wide_up
    theirs.backward(slope.double())
    error = 1e-6 if dtype == torch.float32 else 0.004  # 24 and 8 bits kept.
    for mine, right in ((ours, theirs), (gate.grad, wide_gate.grad), (up.grad, wide_up.grad)):
        torch.testing.assert_close(mine.double(), right, rtol=error, atol=error)
        assert mine.dtype == dtype


def test_what_is_no_number_and_very_large_numbers_come_out_as_of_torch() -> None:
    gate = torch.tensor([float("nan"), 1e30, -1e30, 200.0, -200.0, 0.0])
    torch.testing.assert_close(silu_gate(gate, torch.ones(6)), F.silu(gate), equal_nan=True)


def test_torch_accepts_it_as_an_operator_under_compilation() -> None:
    inputs = (torch.randn(5, 33, requires_grad=True), torch.randn(5, 33, requires_grad=True))
    found = torch.library.opcheck(torch.ops.wenfang.silu_gate.default, inputs)
    assert set(found.values()) == {"SUCCESS"}


def test_only_what_it_can_do_is_sent_to_it() -> None:
    assert takes_gate(torch.randn(2, 3))
    assert takes_gate(torch.randn(2, 3).bfloat16())
    assert not takes_gate(torch.randn(2, 3).double())
    assert not takes_gate(torch.empty(2, 3, device="meta"))
