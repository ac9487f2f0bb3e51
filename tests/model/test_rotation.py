"""Rotary embedding against multiplication by complex numbers, eager and compiled."""

import shutil

import pytest
import torch
from torch import Tensor
from torch._inductor.utils import run_and_get_code

from wenfang.model.parts import RopeConfig
from wenfang.model.position import rotate, rotation

POSITIONS_BT = torch.tensor([[0, 1, 2, 3, 0, 1], [5, 6, 7, 8, 9, 500]])
WIDTH = 32
ROPE = RopeConfig()


def _rotated(x_BHTK: Tensor) -> Tensor:
    tables = rotation(ROPE, WIDTH, POSITIONS_BT, x_BHTK.dtype)
    return rotate(rotate(x_BHTK, tables), tables)


def _expected(x_BHTK: Tensor) -> Tensor:
    """Channels i and i + K/2 are one complex number; twice the angle, since it is rotated twice."""
    turned, kept = x_BHTK.double().split((WIDTH, x_BHTK.shape[-1] - WIDTH), -1)
    angles = 2 * POSITIONS_BT[:, None, :, None] * 10_000.0 ** -(torch.arange(0, WIDTH, 2, dtype=torch.float64) / WIDTH)
    numbers = torch.complex(*turned.chunk(2, -1)) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((numbers.real, numbers.imag, kept), -1)


def _check(actual: Tensor, x: Tensor) -> None:
    gradient = torch.randn_like(x)
    wide = x.detach().double().requires_grad_()
    expected = _expected(wide)
    # Angles up to 500 keep 24 bits: 3e-5 each, doubled.
    torch.testing.assert_close(actual.double(), expected, atol=2e-4, rtol=0)
    (mine,) = torch.autograd.grad(actual, x, gradient)
    (right,) = torch.autograd.grad(expected, wide, gradient.double())
    torch.testing.assert_close(mine.double(), right, atol=2e-4, rtol=0)


@pytest.mark.parametrize("width", [WIDTH, WIDTH + 16])
def test_values_and_gradients_are_those_of_complex_products(width: int) -> None:
    x = torch.randn(2, 3, 6, width).requires_grad_()
    _check(_rotated(x), x)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_compiled_code_uses_the_tables_instead_of_computing_angles_anew() -> None:
    x = torch.randn(2, 3, 6, WIDTH).requires_grad_()
    compiled = torch.compile(_rotated, fullgraph=True, dynamic=False)

    def both() -> Tensor:
        y = compiled(x)
        y.sum().backward()
        return y

    _, sources = run_and_get_code(both)
    assert len(sources) == 2  # Forward and backward.
    for source in sources:
        assert "cpp_fused" in source
        assert ".cos()" not in source
        assert ".sin()" not in source
    _check(compiled(x), x)


def test_torch_accepts_the_tables_as_an_operator() -> None:
    found = torch.library.opcheck(
        torch.ops.wenfang.rotation_tables.default, (torch.randn(2, 1, 5, 4), 1.5, torch.bfloat16)
    )
    assert set(found.values()) == {"SUCCESS"}
