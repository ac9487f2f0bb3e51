"""The one decoder that Wenfang trains, evaluates and serves.

Shapes in names: B batch, T time, D model width, H query heads, G key/value heads, K head width, V vocabulary.
Weights are kept in fp32 and cast to the activations' dtype where they are used, so training in bf16 needs no
autocast and inference may simply convert the whole module.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wenfang.model.config import DecoderConfig

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q_BHTK, k_BGTK, v_BGTK) → context_BHTK. The caller owns mask and cache; the layer owns the weights."""


class Linear(nn.Linear):
    """A bias-free projection whose fp32 weight is cast to the input's dtype."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class RMSNorm(nn.Module):
    """x / rms(x) · weight over the last dimension, computed in fp32 (Zhang & Sennrich 2019)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        scale = torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return (x32 * scale).to(x.dtype) * self.weight.to(x.dtype)


def rotate(x_BHTK: Tensor, cos_B1TK: Tensor, sin_B1TK: Tensor) -> Tensor:
    """Rotary position embedding in the half-split layout of Hugging Face (Su et al. 2021)."""
    first, second = x_BHTK.chunk(2, dim=-1)
    rotated = torch.cat((-second, first), dim=-1)
    return x_BHTK * cos_B1TK + rotated * sin_B1TK


class Attention(nn.Module):
    """Grouped-query self-attention without its memory: `attend` brings the mask and, if any, the cache."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.q_proj = Linear(config.dim, config.heads * config.head_dim)
        self.k_proj = Linear(config.dim, config.kv_heads * config.head_dim)
        self.v_proj = Linear(config.dim, config.kv_heads * config.head_dim)
        self.o_proj = Linear(config.heads * config.head_dim, config.dim)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        B, T, _ = x_BTD.shape
        q_BHTK = self.q_norm(self.q_proj(x_BTD).view(B, T, -1, self.head_dim)).transpose(1, 2)
        k_BGTK = self.k_norm(self.k_proj(x_BTD).view(B, T, -1, self.head_dim)).transpose(1, 2)
        v_BGTK = self.v_proj(x_BTD).view(B, T, -1, self.head_dim).transpose(1, 2)
        context_BHTK = attend(self.layer, rotate(q_BHTK, cos, sin), rotate(k_BGTK, cos, sin), v_BGTK)
        return self.o_proj(context_BHTK.transpose(1, 2).reshape(B, T, -1))


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020). Gate and up are separate products: faster on CPU than one fused product."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.dim, config.hidden)
        self.up_proj = Linear(config.dim, config.hidden)
        self.down_proj = Linear(config.hidden, config.dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))


class Block(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), cos, sin, attend)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class Decoder(nn.Module):
    """Token ids in, hidden states or logits out."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.lm_head = Linear(config.dim, config.vocab_size)
        if config.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw fresh weights: N(0, 0.02²) embeddings, Xavier-like projections, zero output projections, so that
        each block starts as the identity."""
        for name, weight in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
            elif weight.ndim == 2 and name != "lm_head.weight":
                std = 0.02 if name == "embed_tokens.weight" else weight.shape[1] ** -0.5
                weight.normal_(0.0, std)
        if not self.config.tie_embeddings:
            self.lm_head.weight.zero_()

    def hidden(self, ids_BT: Tensor, positions_BT: Tensor, attend: Attend, dtype: torch.dtype) -> Tensor:
        """Final normalised states x_BTD in `dtype`. Positions count from 0 in each sequence."""
        x_BTD = F.embedding(ids_BT, self.embed_tokens.weight).to(dtype)
        cos, sin = self._rotary(positions_BT, dtype)
        for block in self.layers:
            x_BTD = block(x_BTD, cos, sin, attend)
        return self.norm(x_BTD)

    def forward(self, ids_BT: Tensor, positions_BT: Tensor, attend: Attend) -> Tensor:
        """Next-token logits_BTV in the dtype of the weights."""
        return self.lm_head(self.hidden(ids_BT, positions_BT, attend, self.embed_tokens.weight.dtype))

    def _rotary(self, positions_BT: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        exponents = torch.arange(0, self.config.head_dim, 2, device=positions_BT.device) / self.config.head_dim
        angles = positions_BT[:, None, :, None].float() * self.config.rope_theta**-exponents
        angles_B1TK = torch.cat((angles, angles), dim=-1)
        return angles_B1TK.cos().to(dtype), angles_B1TK.sin().to(dtype)


def causal(_layer: int, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor) -> Tensor:
    """Plain causal attention over whole, unpadded sequences."""
    return F.scaled_dot_product_attention(q_BHTK, k_BGTK, v_BGTK, is_causal=True, enable_gqa=True)
