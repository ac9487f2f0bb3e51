"""What happens at each position on its own."""

import torch.nn.functional as F
from torch import Tensor, nn

from wenfang.model.config import DecoderConfig
from wenfang.model.linear import Linear


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020). Gate and up are separate products: faster on CPU than one fused product."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.dim, config.hidden)
        self.up_proj = Linear(config.dim, config.hidden)
        self.down_proj = Linear(config.hidden, config.dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))
