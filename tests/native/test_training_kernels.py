"""The kernels against torch's own operators in fp64, forward and backward."""

import shutil
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from wenfang.native import can_compute, cross_entropy_, silu_gate, training

KERNEL = training
pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")


@pytest.mark.parametrize("processor", ["this", "avx512", "x86-64"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("share", "z"), [(0.0, 0.0), (0.1, 0.0), (0.2, 1e-2)])
@pytest.mark.parametrize("width", [1, 15, 64, 1003])
def test_nats_and_their_gradients_are_those_of_torch(
    width: int,
    share: float,
    z: float,
    dtype: torch.dtype,
    processor: str,
    run_on: Callable[[str], None],
) -> None:
    torch.manual_seed(0)
    run_on(processor)
    logits_NV = (torch.randn(7, width) * 9 + 30).to(dtype)
    targets_N = torch.randint(width, (7,))
    targets_N[2] = -100
    slopes_NV = logits_NV.clone()
    nats_N = cross_entropy_(slopes_NV, targets_N, share, z)
    wide_NV = logits_NV.double().requires_grad_()
    lost_N = F.cross_entropy(wide_NV, targets_N, label_smoothing=share, reduction="none")
    lost_N = lost_N + z * wide_NV.logsumexp(-1).square().masked_fill(targets_N < 0, 0)
    lost_N.sum().backward()
    torch.testing.assert_close(nats_N.double(), lost_N.detach(), rtol=2e-6, atol=2e-5)
    error = 3e-6 if dtype == torch.float32 else 0.004  # 24 and 8 bits kept.
    torch.testing.assert_close(slopes_NV.double(), wide_NV.grad, rtol=error, atol=error * 1e-3)
    assert slopes_NV.dtype == dtype


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_logit_that_is_no_number_is_not_hidden(bad: float) -> None:
    logits_NV = torch.randn(3, 40)
    logits_NV[1, 20] = bad
    slopes_NV = logits_NV.clone()
    nats_N = cross_entropy_(slopes_NV, torch.tensor([1, 2, 40]), 0.0, 0.0)
    assert nats_N.isnan().tolist() == [False, True, True]  # The last has no such target.
    assert slopes_NV[1].isnan().all()
    assert slopes_NV[::2].isfinite().all()


@pytest.mark.parametrize("processor", ["this", "avx512", "x86-64"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (3, 5, 64), (2, 4101)])
def test_values_and_gradients_are_those_of_torch(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    processor: str,
    run_on: Callable[[str], None],
) -> None:
    torch.manual_seed(0)
    run_on(processor)
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


def test_torch_accepts_them_as_operators_under_compilation() -> None:
    logits = (torch.randn(5, 33), torch.tensor([0, 4, -100, 32, 7]), 0.1, 1e-3)
    gates = (torch.randn(5, 33, requires_grad=True), torch.randn(5, 33, requires_grad=True))
    for operator, inputs in ((torch.ops.wenfang.cross_entropy_, logits), (torch.ops.wenfang.silu_gate, gates)):
        assert set(torch.library.opcheck(operator.default, inputs).values()) == {"SUCCESS"}


def test_only_what_they_can_do_is_sent_to_them() -> None:
    assert can_compute(torch.randn(2, 3))
    assert can_compute(torch.randn(2, 3).bfloat16())
    assert not can_compute(torch.randn(2, 3).double())
    assert not can_compute(torch.empty(2, 3, device="meta"))
