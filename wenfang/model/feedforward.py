"""What happens at each position on its own."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wenfang.model.config import Activation, DecoderConfig
from wenfang.model.linear import Linear
from wenfang.model.memory import Memory
from wenfang.native import can_compute, silu_gate


def activate(x: Tensor, name: Activation) -> Tensor:
    """The non-linearity: SiLU (Elfwing et al. 2018), GELU (Hendrycks & Gimpel 2016), exact or by tanh, or ReLU²
    (So et al. 2021)."""
    if name == "silu":
        return F.silu(x)
    if name == "relu2":
        return F.relu(x).square()
    return F.gelu(x, approximate="tanh" if name == "gelu_tanh" else "none")


class FeedForward(nn.Module):
    """down(act(gate(x)) · up(x)), or down(act(up(x))) without a gate (Shazeer 2020). Gate and up are separate products:
    one fused product is not faster at training shapes on a CPU (docs/log.md, 2026-11-26)."""

    def __init__(self, config: DecoderConfig, hidden: int) -> None:
        super().__init__()
        self.activation = config.activation
        self.gate_proj = Linear(config.dim, hidden, bias=config.mlp_bias) if config.gated else None
        self.up_proj = Linear(config.dim, hidden, bias=config.mlp_bias)
        self.down_proj = Linear(hidden, config.dim, bias=config.mlp_bias)

    def forward(self, x_BTD: Tensor, memory: Memory) -> Tensor:
        if self.gate_proj is None:
            return self.down_proj(activate(self.up_proj(x_BTD), self.activation))
        gate, up = self.gate_proj(x_BTD), self.up_proj(x_BTD)
        if self.activation == "silu" and torch.is_grad_enabled() and can_compute(gate):
            return self.down_proj(silu_gate(gate, up))
        return self.down_proj(activate(gate, self.activation) * up)
