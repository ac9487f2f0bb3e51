"""Projections whose fp32 master weights are cast to the activations' dtype where they are used."""

import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """x · Wᵀ, without bias; the fp32 weight is cast to the input's dtype."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))
