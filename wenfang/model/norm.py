"""Normalisation of the residual stream and of queries and keys, over the last dimension, in fp32."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wenfang.model.config import DecoderConfig


class RMSNorm(nn.Module):
    """x / rms(x) · weight (Zhang & Sennrich 2019).

    Args:
        offset: multiply by 1 + weight instead (Gemma).
    """

    def __init__(self, dim: int, eps: float, *, offset: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim) if offset else torch.ones(dim))
        self.eps, self.offset = eps, offset

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        scale = torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        if self.offset:
            return (x32 * scale * (1 + self.weight.float())).to(x.dtype)
        return (x32 * scale).to(x.dtype) * self.weight.to(x.dtype)


class LayerNorm(nn.Module):
    """(x − mean) / std · weight + bias (Ba et al. 2016)."""

    def __init__(self, dim: int, eps: float, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(x.float(), self.weight.shape, self.weight.float(), bias, self.eps).to(x.dtype)


def make_norm(config: DecoderConfig) -> nn.Module:
    """The norm of the residual stream that a config asks for."""
    if config.norm == "layer":
        return LayerNorm(config.dim, config.norm_eps, bias=config.norm_bias)
    return RMSNorm(config.dim, config.norm_eps, offset=config.norm_offset)
