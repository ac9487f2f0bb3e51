"""The one decoder that Wenfang trains, evaluates and serves.

Shapes in names: B batch, T time, D model width, V vocabulary. Weights are kept in fp32 and cast to the activations'
dtype where they are used, so training in bf16 needs no autocast and inference may simply convert the whole module.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wenfang.core.errors import ModelError
from wenfang.core.language import say
from wenfang.model.attention import Attention
from wenfang.model.config import DecoderConfig, Mixer
from wenfang.model.feedforward import FeedForward
from wenfang.model.linear import Linear
from wenfang.model.memory import Memory
from wenfang.model.norm import RMSNorm
from wenfang.model.position import Rotation, rotation

MIXERS: dict[Mixer, Callable[[DecoderConfig, int], nn.Module]] = {"attention": Attention}
"""Sequence mixers: built from the config and the layer's number; called with x_BTD, the memory and the rotation of
the positions (None without rotary embedding), they return y_BTD."""


class Block(nn.Module):
    """Pre-norm residual block: a sequence mixer, then a feed-forward."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.mixer_norm = RMSNorm(config.dim, config.norm_eps)
        self.mixer = _make_mixer(config, layer)
        self.mlp_norm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x_BTD: Tensor, memory: Memory, rotation: Rotation | None) -> Tensor:
        x_BTD = x_BTD + self.mixer(self.mixer_norm(x_BTD), memory, rotation)
        return x_BTD + self.mlp(self.mlp_norm(x_BTD))


class Decoder(nn.Module):
    """Token ids (or embeddings) in, hidden states or logits out."""

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

    def embed(self, ids_BT: Tensor, dtype: torch.dtype) -> Tensor:
        """The embeddings x_BTD that the first block reads."""
        return F.embedding(ids_BT, self.embed_tokens.weight).to(dtype)

    def hidden(self, inputs: Tensor, positions_BT: Tensor, memory: Memory, dtype: torch.dtype) -> Tensor:
        """Final normalised states x_BTD in `dtype`.

        Args:
            inputs: token ids_BT, or embeddings x_BTD such as `embed` makes, possibly mixed with those of other
                modalities.
            positions_BT: counted from 0 in each sequence.
        """
        x_BTD = inputs.to(dtype) if inputs.is_floating_point() else self.embed(inputs, dtype)
        rotations = [
            None if rope is None else rotation(rope, self.config.head_dim, positions_BT, dtype)
            for rope in self.config.ropes
        ]
        for layer, block in enumerate(self.layers):
            x_BTD = block(x_BTD, memory, rotations[layer % len(rotations)])
        return self.norm(x_BTD)

    def forward(self, inputs: Tensor, positions_BT: Tensor, memory: Memory) -> Tensor:
        """Next-token logits_BTV in the dtype of the weights."""
        return self.lm_head(self.hidden(inputs, positions_BT, memory, self.embed_tokens.weight.dtype))


def _make_mixer(config: DecoderConfig, layer: int) -> Any:
    name = config.mixer(layer)
    if name not in MIXERS:
        raise ModelError(
            say(
                zh=f"第 {layer} 層的 mixers={name!r} 尚不支援。", en=f"Layer {layer}: mixers={name!r} is not supported."
            )
        )
    return MIXERS[name](config, layer)
