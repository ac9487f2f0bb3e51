"""Attention layers: weights, norms and positions. Masks and caches are the memory's.

Shapes in names: B batch, T time, D model width, H query heads, G key/value heads, K key width, V value width, R latent.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from wenfang.model.config import DecoderConfig
from wenfang.model.linear import Linear
from wenfang.model.memory import AttentionSpec, Memory
from wenfang.model.norm import RMSNorm
from wenfang.model.parts import MlaConfig
from wenfang.model.position import Rotation, alibi_slopes, rotate


def make_attention(config: DecoderConfig, layer: int) -> nn.Module:
    """The attention that a config asks for."""
    return Attention(config, layer) if config.mla is None else LatentAttention(config, layer, config.mla)


class _Core(nn.Module):
    """What every attention has: what it asks of the memory, sinks, a gate and the output projection."""

    def __init__(self, config: DecoderConfig, layer: int, value_dim: int) -> None:
        super().__init__()
        self.layer = layer
        self.o_proj = Linear(config.heads * value_dim, config.dim, bias=config.o_bias)
        self.gate_proj = Linear(config.dim, config.heads * value_dim) if config.attention_gate else None
        self.sinks = nn.Parameter(torch.zeros(config.heads)) if config.attention_sinks else None
        self._spec = AttentionSpec(
            scale=config.attention_scale or config.head_dim**-0.5,
            window=config.window(layer),
            softcap=config.attention_softcap,
            slopes=alibi_slopes(config.heads) if config.alibi else None,
        )

    @property
    def spec(self) -> AttentionSpec:
        """What this layer asks of its attention."""
        return self._spec if self.sinks is None else replace(self._spec, sinks_H=self.sinks)

    def project(self, context_BHTV: Tensor, x_BTD: Tensor) -> Tensor:
        """The layer's output from the heads' contexts; a gate looks at the layer's input."""
        context = context_BHTV.transpose(1, 2).flatten(2)
        if self.gate_proj is not None:
            context = context * self.gate_proj(x_BTD).sigmoid()
        return self.o_proj(context)


class Attention(_Core):
    """Grouped-query self-attention; multi-head and multi-query are its ends (Ainslie et al. 2023)."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__(config, layer, config.head_dim)
        self.head_dim, self.clip, self.norm_over = config.head_dim, config.qkv_clip, config.qk_norm
        self.q_proj = Linear(config.dim, config.heads * config.head_dim, bias=config.qkv_bias)
        self.k_proj = Linear(config.dim, config.kv_heads * config.head_dim, bias=config.qkv_bias)
        self.v_proj = Linear(config.dim, config.kv_heads * config.head_dim, bias=config.qkv_bias)
        if config.qk_norm:
            heads = (1, 1) if config.qk_norm == "head" else (config.heads, config.kv_heads)
            self.q_norm = RMSNorm(heads[0] * config.head_dim, config.norm_eps, offset=config.norm_offset)
            self.k_norm = RMSNorm(heads[1] * config.head_dim, config.norm_eps, offset=config.norm_offset)

    def forward(self, x_BTD: Tensor, memory: Memory, rotation: Rotation | None) -> Tensor:
        q, k, v = self.q_proj(x_BTD), self.k_proj(x_BTD), self.v_proj(x_BTD)
        if self.clip is not None:
            q, k, v = (projected.clamp(-self.clip, self.clip) for projected in (q, k, v))
        if self.norm_over == "projection":
            q, k = self.q_norm(q), self.k_norm(k)
        q_BHTK, k_BGTK, v_BGTK = (heads.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for heads in (q, k, v))
        if self.norm_over == "head":
            q_BHTK, k_BGTK = self.q_norm(q_BHTK), self.k_norm(k_BGTK)
        if rotation is not None:
            q_BHTK, k_BGTK = rotate(q_BHTK, rotation), rotate(k_BGTK, rotation)
        return self.project(memory.attend(self.layer, q_BHTK, k_BGTK, v_BGTK, self.spec), x_BTD)


class LatentAttention(_Core):
    """Multi-head latent attention (DeepSeek-V2 2024, section 2.1).

    Whole sequences are computed with full keys and values. A lasting memory gets the latent vector and the rotated
    key instead, and the projections to keys and values move to the queries and the context, which is the same
    product in another order.
    """

    def __init__(self, config: DecoderConfig, layer: int, mla: MlaConfig) -> None:
        super().__init__(config, layer, mla.value_dim)
        self.heads, self.kv_rank, self.rope_dim, self.value_dim = config.heads, mla.kv_rank, mla.rope_dim, mla.value_dim
        self.nope_dim = config.head_dim - mla.rope_dim
        self.full_query = mla.query_rank is None
        if mla.query_rank is None:
            self.q_proj = Linear(config.dim, config.heads * config.head_dim)
        else:
            self.q_a_proj = Linear(config.dim, mla.query_rank, bias=config.qkv_bias)
            self.q_a_norm = RMSNorm(mla.query_rank, mla.norm_eps)
            self.q_b_proj = Linear(mla.query_rank, config.heads * config.head_dim)
        self.kv_a_proj = Linear(config.dim, mla.kv_rank + mla.rope_dim, bias=config.qkv_bias)
        self.kv_a_norm = RMSNorm(mla.kv_rank, mla.norm_eps)
        self.kv_b_proj = Linear(mla.kv_rank, config.heads * (self.nope_dim + mla.value_dim))

    def forward(self, x_BTD: Tensor, memory: Memory, rotation: Rotation | None) -> Tensor:
        q = self.q_proj(x_BTD) if self.full_query else self.q_b_proj(self.q_a_norm(self.q_a_proj(x_BTD)))
        q_BHTK = q.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        nope_BHTN, rope_BHTP = q_BHTK.split((self.nope_dim, self.rope_dim), -1)
        latent_BTR, key_BTP = self.kv_a_proj(x_BTD).split((self.kv_rank, self.rope_dim), -1)
        latent_BTR, key_B1TP = self.kv_a_norm(latent_BTR), key_BTP[:, None]
        if rotation is not None:
            rope_BHTP, key_B1TP = rotate(rope_BHTP, rotation), rotate(key_B1TP, rotation)
        attend = self._attend_latent if memory.lasting else self._attend_expanded
        return self.project(attend(memory, nope_BHTN, rope_BHTP, latent_BTR, key_B1TP), x_BTD)

    def _attend_expanded(
        self, memory: Memory, nope_BHTN: Tensor, rope_BHTP: Tensor, latent_BTR: Tensor, key_B1TP: Tensor
    ) -> Tensor:
        kv_BHT = self.kv_b_proj(latent_BTR).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        keys_BHTN, v_BHTV = kv_BHT.split((self.nope_dim, self.value_dim), -1)
        q_BHTK = torch.cat((nope_BHTN, rope_BHTP), -1)
        k_BHTK = torch.cat((keys_BHTN, key_B1TP.expand(-1, self.heads, -1, -1)), -1)
        return memory.attend(self.layer, q_BHTK, k_BHTK, v_BHTV, self.spec)

    def _attend_latent(
        self, memory: Memory, nope_BHTN: Tensor, rope_BHTP: Tensor, latent_BTR: Tensor, key_B1TP: Tensor
    ) -> Tensor:
        weight_HNVR = self.kv_b_proj.weight.to(latent_BTR.dtype).unflatten(0, (self.heads, -1))
        to_key_HNR, to_value_HVR = weight_HNVR.split((self.nope_dim, self.value_dim), 1)
        q_BHTK = torch.cat((nope_BHTN @ to_key_HNR, rope_BHTP), -1)
        k_B1TK = torch.cat((latent_BTR[:, None], key_B1TP), -1)
        spec = replace(self.spec, latent=self.kv_rank)
        context_BHTR = memory.attend(self.layer, q_BHTK, k_B1TK, k_B1TK[..., : self.kv_rank], spec)
        return context_BHTR @ to_value_HVR.mT
