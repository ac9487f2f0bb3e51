"""Attention layers: weights, norms and positions. Masks and caches are the memory's.

Shapes in names: B batch, T time, D model width, H query heads, G key/value heads, K head width.
"""

from torch import Tensor, nn

from wenfang.model.config import DecoderConfig
from wenfang.model.linear import Linear
from wenfang.model.memory import AttentionSpec, Memory
from wenfang.model.norm import RMSNorm
from wenfang.model.position import Rotation, rotate


class Attention(nn.Module):
    """Grouped-query self-attention (Ainslie et al. 2023)."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.q_proj = Linear(config.dim, config.heads * config.head_dim)
        self.k_proj = Linear(config.dim, config.kv_heads * config.head_dim)
        self.v_proj = Linear(config.dim, config.kv_heads * config.head_dim)
        self.o_proj = Linear(config.heads * config.head_dim, config.dim)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.spec = AttentionSpec(
            scale=config.attention_scale or config.head_dim**-0.5,
            window=config.window(layer),
            softcap=config.attention_softcap,
        )

    def forward(self, x_BTD: Tensor, memory: Memory, rotation: Rotation | None) -> Tensor:
        B, T, _ = x_BTD.shape
        q_BHTK = self.q_norm(self.q_proj(x_BTD).view(B, T, -1, self.head_dim)).transpose(1, 2)
        k_BGTK = self.k_norm(self.k_proj(x_BTD).view(B, T, -1, self.head_dim)).transpose(1, 2)
        v_BGTK = self.v_proj(x_BTD).view(B, T, -1, self.head_dim).transpose(1, 2)
        if rotation is not None:
            q_BHTK, k_BGTK = rotate(q_BHTK, rotation), rotate(k_BGTK, rotation)
        context_BHTK = memory.attend(self.layer, q_BHTK, k_BGTK, v_BGTK, self.spec)
        return self.o_proj(context_BHTK.transpose(1, 2).reshape(B, T, -1))
