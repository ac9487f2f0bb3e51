"""Projections whose fp32 master weights are cast to the activations' dtype where they are used."""

import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """x · Wᵀ + b; the fp32 weights are cast to the input's dtype."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = False) -> None:
        super().__init__(inputs, outputs, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))
