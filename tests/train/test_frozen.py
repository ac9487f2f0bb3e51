"""Quantised bases: the published levels, closed-form error bounds, and what is really kept in memory."""

import pytest
import torch

from wenfang.model.linear import Linear
from wenfang.train.frozen import NF4_LEVELS, FrozenLinear

# Dettmers et al. 2023, appendix E.
PUBLISHED = """
-1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635 -0.18477343022823334
-0.09105003625154495 0.0 0.07958029955625534 0.16093020141124725 0.24611230194568634 0.33791524171829224
0.44070982933044434 0.5626170039176941 0.7229568362236023 1.0"""


def test_levels_are_the_published_ones() -> None:
    # The paper rounds its outermost quantile to 0.9677083, which moves the levels by less than 1e-5.
    torch.testing.assert_close(NF4_LEVELS, torch.tensor([float(v) for v in PUBLISHED.split()]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", ["nf4", "int8"])
@pytest.mark.parametrize("shape", [(24, 64), (10, 7)])  # The second ends in the middle of a block.
def test_each_weight_becomes_the_nearest_level(form: str, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape)
    restored = FrozenLinear(weight, None, form).weight
    if form == "int8":
        scales = weight.abs().amax(1, keepdim=True) / 127
        assert ((weight - restored).abs() <= scales / 2 + 1e-6).all()
        return
    for block, kept in zip(weight.flatten().split(64), restored.flatten().split(64), strict=True):
        nearest = ((block / block.abs().max())[:, None] - NF4_LEVELS).abs().argmin(1)
        torch.testing.assert_close(kept, NF4_LEVELS[nearest] * block.abs().max())


@pytest.mark.parametrize(("form", "bytes_per_weight"), [("nf4", 0.5 + 4 / 64), ("int8", 1 + 4 / 512)])
def test_memory_at_rest_and_for_the_backward_pass(form: str, bytes_per_weight: float) -> None:
    torch.manual_seed(0)
    dense = Linear(512, 256)
    frozen = FrozenLinear(dense.weight.detach(), None, form)
    held = sum(buffer.nbytes for buffer in frozen.buffers())
    table = 16 * 4 if form == "nf4" else 0
    assert held == bytes_per_weight * 512 * 256 + table
    saved: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    x = torch.randn(3, 512, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = frozen(x)
    assert sum(tensor.nbytes for tensor in saved) <= held  # No dense copy waits for the gradient.
    y.square().sum().backward()
    reference = x.detach().clone().requires_grad_()
    torch.nn.functional.linear(reference, frozen.weight).square().sum().backward()
    torch.testing.assert_close(x.grad, reference.grad)
