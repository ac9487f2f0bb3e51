"""The one decoder that Wenfang trains, evaluates and serves.

Shapes in names: B batch, T time, D model width, V vocabulary. Weights are kept in fp32 and cast to the activations'
dtype where they are used, so training in bf16 needs no autocast and inference may simply convert the whole module.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wenfang.core.errors import ModelError
from wenfang.core.language import say
from wenfang.model.config import DecoderConfig
from wenfang.model.experts import Experts
from wenfang.model.feedforward import FeedForward
from wenfang.model.linear import Linear
from wenfang.model.memory import Memory
from wenfang.model.mixers.make import make_mixer
from wenfang.model.mixers.recurrent import RecurrentMixer
from wenfang.model.mixers.rwkv7 import ShiftedFeedForward
from wenfang.model.norm import make_norm
from wenfang.model.position import Rotation, rotation, sinusoids
from wenfang.model.retro import ChunkedCrossAttention, Retrieval


class Block(nn.Module):
    """Residual block: a sequence mixer, then a feed-forward, each with norms before it, on its output, or both; in some
    layers cross-attention over neighbours between them."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        pre, post = config.norm_placement != "post", config.norm_placement != "pre"
        self.mixer_norm = make_norm(config) if pre else nn.Identity()
        self.mixer = make_mixer(config, layer)
        self.mixer_post_norm = make_norm(config) if post else nn.Identity()
        retro = config.retro
        self.cross = ChunkedCrossAttention(config, layer, retro) if retro and layer in retro.layers else None
        self.mlp = _make_feed_forward(config, layer)
        self.mlp_norm = make_norm(config) if pre and self.mlp else nn.Identity()
        self.mlp_post_norm = make_norm(config) if post and self.mlp else nn.Identity()

    def forward(
        self, x_BTD: Tensor, memory: Memory, rotation: Rotation | None, retrieval: Retrieval | None = None
    ) -> Tensor:
        x_BTD = x_BTD + self.mixer_post_norm(self.mixer(self.mixer_norm(x_BTD), memory, rotation))
        if self.cross is not None and retrieval is not None:
            x_BTD = x_BTD + self.cross(x_BTD, retrieval)
        if self.mlp is None:
            return x_BTD
        return x_BTD + self.mlp_post_norm(self.mlp(self.mlp_norm(x_BTD), memory))


class Ahead(nn.Module):
    """Predicts one token further: a block over the last states joined with the next token's embedding (multi-token
    prediction, DeepSeek-V3 2024, section 2.2)."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.embedding_norm, self.state_norm = make_norm(config), make_norm(config)
        self.join_proj = Linear(2 * config.dim, config.dim)
        self.block = Block(config, layer)
        self.norm = make_norm(config)

    def forward(self, x_BTD: Tensor, next_BTD: Tensor, memory: Memory, rotation: Rotation | None) -> Tensor:
        joined = torch.cat((self.embedding_norm(next_BTD), self.state_norm(x_BTD)), -1)
        return self.norm(self.block(self.join_proj(joined), memory, rotation))


class Decoder(nn.Module):
    """Token ids (or embeddings) in, hidden states or logits out."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self._ropes = list(dict.fromkeys(config.ropes))
        self._rope_of = [self._ropes.index(config.rope(layer)) for layer in range(config.layers + config.ahead)]
        learned = config.absolute_positions == "learned"
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        self.embed_positions = nn.Embedding(config.context, config.dim) if learned else None
        self.embed_norm = make_norm(config) if config.embedding_norm else nn.Identity()
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = make_norm(config)
        self.ahead = nn.ModuleList(Ahead(config, config.layers + depth) for depth in range(config.ahead))
        self.lm_head = Linear(config.dim, config.vocab_size)
        if config.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, or of those that are not quantised."""
        return next(self.parameters()).dtype

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw fresh weights: N(0, 0.02²) embeddings, Xavier-like projections, zero output projections, so that
        each block starts as the identity. Norms, biases and sinks keep what they were made with."""
        for name, weight in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
            elif weight.ndim >= 2 and name != "lm_head.weight":
                std = 0.02 if name.startswith("embed_") else weight.shape[-1] ** -0.5
                weight.normal_(0.0, std)
        if not self.config.tie_embeddings:
            self.lm_head.weight.zero_()
        for module in self.modules():
            if isinstance(module, RecurrentMixer | ShiftedFeedForward):
                module.initialise()

    def embed(self, ids_BT: Tensor, dtype: torch.dtype) -> Tensor:
        """The tokens' embeddings x_BTD, to which `hidden` adds what depends on positions."""
        x_BTD = self.embed_tokens(ids_BT).to(dtype)
        scale = self.config.embedding_scale
        # Gemma was trained with the scale rounded to the activations' dtype.
        return x_BTD if scale is None else x_BTD * torch.tensor(scale, dtype=dtype, device=x_BTD.device)

    def embed_mixed(self, ids_BT: Tensor, given_ND: Tensor, places_BT: Tensor, dtype: torch.dtype) -> Tensor:
        """The embeddings x_BTD of a sequence that is part text, part something else, such as image patches.

        Args:
            ids_BT: token ids; what stands at the places given is not looked up.
            given_ND: embeddings from elsewhere, row after row; `embedding_scale` is not applied to them, as in Gemma 3.
            places_BT: bool, True where they go; N of them.

        Raises:
            ModelError: more or fewer places than embeddings.
        """
        places, given = int(places_BT.sum()), len(given_ND)
        if places != given:
            raise ModelError(
                say(
                    zh=f"序列留了 {places} 個位置，給了 {given} 個向量；兩者須相等。",
                    en=f"The sequences have {places} places for {given} embeddings; the two must be equal.",
                )
            )
        x_BTD = self.embed(ids_BT.masked_fill(places_BT, 0), dtype)
        return x_BTD.masked_scatter(places_BT[..., None], given_ND.to(dtype))

    def hidden(self, inputs: Tensor, positions_BT: Tensor, memory: Memory, dtype: torch.dtype) -> Tensor:
        """Final normalised states x_BTD in `dtype`.

        Args:
            inputs: token ids_BT, or embeddings x_BTD such as `embed` and `embed_mixed` make.
            positions_BT: counted from 0 in each sequence, whatever stands at a position.
        """
        x_BTD = self._embedded(inputs, dtype)
        if self.embed_positions is not None:
            x_BTD = x_BTD + F.embedding(positions_BT, self.embed_positions.weight).to(dtype)
        elif self.config.absolute_positions == "sinusoidal":
            x_BTD = x_BTD + sinusoids(positions_BT, self.config.dim).to(dtype)
        x_BTD = self.embed_norm(x_BTD)
        rotations, retrieval = self._rotations(positions_BT, dtype), self._retrieval(positions_BT, memory, dtype)
        for layer, block in enumerate(self.layers):
            x_BTD = block(x_BTD, memory, rotations[self._rope_of[layer]], retrieval)
        return self.norm(x_BTD)

    def logits(self, x_BTD: Tensor) -> Tensor:
        """Next-token logits_BTV of final states."""
        logits_BTV = self.lm_head(x_BTD)
        cap = self.config.logit_softcap
        return logits_BTV if cap is None else (logits_BTV / cap).tanh() * cap

    def forward(self, inputs: Tensor, positions_BT: Tensor, memory: Memory) -> Tensor:
        """Next-token logits_BTV in the dtype of the weights."""
        return self.logits(self.hidden(inputs, positions_BT, memory, self.dtype))

    def look_ahead(self, x_BTD: Tensor, inputs: Tensor, positions_BT: Tensor, memory: Memory) -> Iterator[Tensor]:
        """Final states that predict two tokens on, three tokens on, … from those of `hidden`, whose `inputs` these are;
        one per `ahead`.

        The states at depth k have read token t + k; where a row (or its document) ends before, they mean nothing.
        """
        for depth in range(1, len(self.ahead) + 1):
            x_BTD = self.look_further(depth, x_BTD, inputs.roll(-depth, 1), positions_BT, memory)
            yield x_BTD

    def look_further(
        self, depth: int, x_BTD: Tensor, next_inputs: Tensor, positions_BT: Tensor, memory: Memory
    ) -> Tensor:
        """One depth of `look_ahead`: from the states of the depth before (0: those of `hidden`) and, at each position
        t, token t + depth or its embedding."""
        layer = self.config.layers + depth - 1
        rotation = self._rotations(positions_BT, x_BTD.dtype)[self._rope_of[layer]]
        return self.ahead[depth - 1](x_BTD, self._embedded(next_inputs, x_BTD.dtype), memory, rotation)

    def rebalance_experts(self) -> None:
        """After each optimiser step: move every mixture of experts towards an even load."""
        for module in self.modules():
            if isinstance(module, Experts):
                module.rebalance()

    def _embedded(self, inputs: Tensor, dtype: torch.dtype) -> Tensor:
        return inputs.to(dtype) if inputs.is_floating_point() else self.embed(inputs, dtype)

    def _rotations(self, positions_BT: Tensor, dtype: torch.dtype) -> list[Rotation | None]:
        """One per distinct rotary embedding."""
        return [
            None if rope is None else rotation(rope, self.config.rope_width(rope), positions_BT, dtype)
            for rope in self._ropes
        ]

    def _retrieval(self, positions_BT: Tensor, memory: Memory, dtype: torch.dtype) -> Retrieval | None:
        """Neighbours for the layers that attend to them; None where there are none and never were."""
        retro = self.config.retro
        if retro is None or (memory.neighbours_BSNR is None and not memory.retrieves):
            return None
        return Retrieval(retro, memory, positions_BT, lambda ids: self.embed(ids, dtype))


def _make_feed_forward(config: DecoderConfig, layer: int) -> nn.Module | None:
    moe = config.experts(layer)
    if moe is not None:
        return Experts(config, moe)
    if not config.hidden:
        return None
    return ShiftedFeedForward(config, layer) if config.token_shift else FeedForward(config, config.hidden)
