"""The kernel against torch's own cross-entropy in fp64, and its gradient against autograd's."""

import ctypes
import functools
import shutil
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from native.processors import compiled_for

from wenfang.native import cross_entropy_, takes_logits

KERNEL = sys.modules["wenfang.native.cross_entropy"]  # In the package its name is the function's.
pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ctypes.CDLL]:
    """The kernel for a processor, emulated where need be."""
    folder = tmp_path_factory.mktemp("kernel")
    return functools.cache(lambda processor: compiled_for(processor, KERNEL.SOURCE, folder))


@pytest.mark.parametrize("processor", ["this", "avx512", "x86-64"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("share", "z"), [(0.0, 0.0), (0.1, 0.0), (0.2, 1e-2)])
@pytest.mark.parametrize("width", [1, 15, 64, 1003])
def test_nats_and_gradients_are_those_of_torch(
    width: int,
    share: float,
    z: float,
    dtype: torch.dtype,
    processor: str,
    libraries: Callable[[str], ctypes.CDLL],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    if processor != "this":
        library = libraries(processor)
        monkeypatch.setattr(KERNEL, "_library", lambda: library)
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
def test_what_is_no_number_is_not_hidden(bad: float) -> None:
    logits_NV = torch.randn(3, 40)
    logits_NV[1, 20] = bad
    slopes_NV = logits_NV.clone()
    nats_N = cross_entropy_(slopes_NV, torch.tensor([1, 2, 40]), 0.0, 0.0)
    assert nats_N.isnan().tolist() == [False, True, True]  # The last has no such target.
    assert slopes_NV[1].isnan().all()
    assert slopes_NV[::2].isfinite().all()


def test_torch_accepts_it_as_an_operator_under_compilation() -> None:
    inputs = (torch.randn(5, 33), torch.tensor([0, 4, -100, 32, 7]), 0.1, 1e-3)
    found = torch.library.opcheck(torch.ops.wenfang.cross_entropy_.default, inputs)
    assert set(found.values()) == {"SUCCESS"}


def test_only_what_it_can_do_is_sent_to_it() -> None:
    assert takes_logits(torch.randn(2, 3))
    assert takes_logits(torch.randn(2, 3).bfloat16())
    assert not takes_logits(torch.randn(2, 3).double())
    assert not takes_logits(torch.randn(3, 2).T)
    assert not takes_logits(torch.empty(2, 3, device="meta"))
