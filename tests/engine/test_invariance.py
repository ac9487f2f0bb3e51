"""The number of rows that makes products independent, and what happens to texts without it."""

import pytest
import torch
import torch.nn.functional as F

from wenfang.engine.invariance import independent_rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_stand_alone_at_other_shapes_and_numbers_too(dtype: torch.dtype) -> None:
    rows = independent_rows(dtype, [(32, 48), (48, 32)])
    weight = torch.randn(700, 64).to(dtype)
    x = torch.randn(80, 64).to(dtype)
    alone = torch.cat([F.linear(x[i].expand(rows, -1).contiguous(), weight)[:1] for i in range(40)])
    for n in range(rows, 81, rows):
        assert torch.equal(F.linear(x[:n], weight)[:40], alone[: min(n, 40)])
