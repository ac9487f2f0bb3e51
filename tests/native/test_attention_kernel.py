"""The kernel against torch's own attention in fp64, forward and backward."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wenfang.native import attention, can_attend, library

KERNEL = sys.modules["wenfang.native.attention"]  # In the package its name is the function's.
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
HAS_BF16 = Path("/proc/cpuinfo").exists() and "avx512_bf16" in Path("/proc/cpuinfo").read_text()


def _heads(B: int, H: int, T: int, K: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Laid out as a decoder's projections are."""
    return torch.randn(B, T, H, K).to(dtype).transpose(1, 2).requires_grad_()


def _expected(q: Tensor, k: Tensor, v: Tensor, starts_BT: Tensor, scale: float) -> Tensor:
    t = torch.arange(q.shape[2])
    seen_BTT = (t <= t[:, None]) & (t >= starts_BT[:, :, None])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen_BTT[:, None], scale=scale, enable_gqa=True)


def _starts(kind: str, B: int, T: int) -> Tensor:
    t = torch.arange(T)
    if kind == "causal":
        return torch.zeros(B, T, dtype=torch.int32)
    if kind == "window":
        return (t - 6).clamp(min=0).int().expand(B, T).contiguous()
    borders_BT = torch.rand(B, T) < 0.05
    return (borders_BT * t).cummax(1).values.int()


@needs_compiler
@pytest.mark.parametrize(
    ("dtype", "processor"),
    [
        (torch.float32, "this"),
        pytest.param(torch.bfloat16, "this", marks=pytest.mark.skipif(not HAS_BF16, reason="needs AVX512-BF16")),
        (torch.bfloat16, "avx512"),
        (torch.bfloat16, "amx"),
    ],
)
@pytest.mark.parametrize("starts", ["causal", "documents", "window"])
@pytest.mark.parametrize(
    "shape",
    [
        (2, 3, 1, 128, 64),
        (1, 4, 2, 77, 32),
        (2, 2, 2, 300, 64),
        (1, 2, 1, 97, 128),
        (3, 2, 2, 1, 16),
        (1, 1, 1, 31, 48),
    ],
)
def test_context_and_gradients_are_those_of_torch(
    shape: tuple[int, int, int, int, int],
    starts: str,
    dtype: torch.dtype,
    processor: str,
    run_on: Callable[[str], None],
) -> None:
    B, H, G, T, K = shape
    torch.manual_seed(0)
    run_on(processor)
    error = 2e-6 if dtype == torch.float32 else 0.006  # 24 and 8 bits kept.
    q, k, v = _heads(B, H, T, K, dtype), _heads(B, G, T, K, dtype), _heads(B, G, T, K, dtype)
    starts_BT, scale = _starts(starts, B, T), 0.7 * K**-0.5
    gradient = torch.randn(B, H, T, K).to(dtype)
    ours = attention(q, k, v, starts_BT, scale)
    ours.backward(gradient)
    wide = [x.detach().double().requires_grad_() for x in (q, k, v)]
    theirs = _expected(*wide, starts_BT, scale)
    theirs.backward(gradient.double())
    for mine, right in ((ours, theirs), *((x.grad, y.grad) for x, y in zip((q, k, v), wide, strict=True))):
        assert (mine.double() - right).norm() <= error * right.norm() + 1e-6


@needs_compiler
def test_torch_accepts_it_as_an_operator_under_compilation() -> None:
    """Shapes, strides, aliasing and gradients agree between eager mode and what the compiler traces."""
    q, k, v = (_heads(2, heads, 40, 32, torch.float32) for heads in (4, 2, 2))
    inputs = (q, k, v, _starts("documents", 2, 40), 0.2)
    found = torch.library.opcheck(torch.ops.wenfang.attention.default, inputs)
    assert set(found.values()) == {"SUCCESS"}


@needs_compiler
def test_only_what_it_can_do_is_sent_to_it() -> None:
    x = _heads(1, 2, 8, 32, torch.float32)
    assert can_attend(x, x)
    assert can_attend(x.bfloat16(), x.bfloat16()) == HAS_BF16
    assert not can_attend(x.double(), x.double())
    assert not can_attend(x[..., :24], x[..., :24])
    assert not can_attend(x, x[..., :16])


def test_without_a_compiler_there_is_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert library.load.__wrapped__(Path(library.__file__).with_name("attention.cpp")) is None


@needs_compiler
def test_a_refused_file_warns_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "broken.cpp"
    source.write_text("this is not C++")
    with pytest.warns(RuntimeWarning, match="broken.cpp could not be compiled"):
        assert library.load.__wrapped__(source) is None
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
