"""Retrieval inside the decoder: chunked cross-attention over neighbours (RETRO, Borgeaud et al. 2022, section 2).

A sequence is cut into chunks of M tokens. Once a chunk is complete its neighbours may be looked up, and M positions
attend to them: the chunk's last and the next chunk's all but the last. So no position sees what was found with a token
that comes after it. Rotary positions, counted from the chunk's first token in queries and from each neighbour's first
token in keys, stand in for the paper's relative ones.

The memory brings the neighbours of the chunks that a call completes. Where it lasts and `retrieves`, it keeps the last
set's keys and values between calls, so that decoding token by token gives what one call over everything gives.

Shapes in names: B batch, T time, D model width, M chunk, N neighbours, R = 2M tokens of a neighbour, X = N·R,
S sets of neighbours of a row, P = B·S, L queries of a set, H query heads, G key/value heads, K head width.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from wenfang.core.errors import ModelError
from wenfang.core.language import say
from wenfang.model.config import DecoderConfig
from wenfang.model.feedforward import FeedForward
from wenfang.model.linear import Linear
from wenfang.model.memory import AttentionSpec, Memory, attention_products
from wenfang.model.norm import RMSNorm, make_norm
from wenfang.model.parts import RetroConfig, RopeConfig
from wenfang.model.position import rotate, rotation

ROPE = RopeConfig()
"""Positions inside a chunk and its neighbours are small and local, whatever the decoder's own are."""
STATE = "retro"
"""Where the memory keeps the running chunk's states and which tokens of the last set are there."""


class CrossAttention(nn.Module):
    """Attention from one sequence to another, or to itself in both directions, with rotary positions."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.q_proj = Linear(config.dim, config.heads * config.head_dim)
        self.k_proj = Linear(config.dim, config.kv_heads * config.head_dim)
        self.v_proj = Linear(config.dim, config.kv_heads * config.head_dim)
        self.o_proj = Linear(config.heads * config.head_dim, config.dim)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self._spec = AttentionSpec(scale=config.head_dim**-0.5)

    def read(self, y_PXD: Tensor, positions_PX: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, [P, G, X, K] each, of what is attended to."""
        k_PGXK = self.k_norm(self._heads(self.k_proj(y_PXD)))
        return rotate(k_PGXK, self._rotation(positions_PX, y_PXD)), self._heads(self.v_proj(y_PXD))

    def forward(
        self, x_PLD: Tensor, positions_PL: Tensor, k_PGXK: Tensor, v_PGXK: Tensor, bias_PX: Tensor | None = None
    ) -> Tensor:
        """What the queries of `x_PLD` gather; `bias_PX` is added to the scores."""
        q_PHLK = rotate(self.q_norm(self._heads(self.q_proj(x_PLD))), self._rotation(positions_PL, x_PLD))
        bias = q_PHLK.new_zeros(()) if bias_PX is None else bias_PX[:, None, None]
        context_PHLK = attention_products(q_PHLK, k_PGXK, v_PGXK, bias, self._spec)
        return self.o_proj(context_PHLK.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def _rotation(self, positions: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        return rotation(ROPE, self.head_dim, positions, like.dtype)


class _EncoderBlock(nn.Module):
    """A bidirectional block over each neighbour; where `conditioned`, it also reads the chunk."""

    def __init__(self, config: DecoderConfig, *, conditioned: bool) -> None:
        super().__init__()
        self.self_norm, self.self_attention = make_norm(config), CrossAttention(config)
        self.chunk_norm = make_norm(config) if conditioned else nn.Identity()
        self.chunk_attention = CrossAttention(config) if conditioned else None
        self.mlp_norm, self.mlp = make_norm(config), FeedForward(config, config.hidden)

    def forward(self, x_PNRD: Tensor, chunk_PMD: Tensor, bias_PNR: Tensor, memory: Memory) -> Tensor:
        _, N, R, _ = x_PNRD.shape
        places_1R = torch.arange(R, device=x_PNRD.device)[None]
        each = self.self_norm(x_PNRD).flatten(0, 1)
        kv = self.self_attention.read(each, places_1R)
        x_PNRD = x_PNRD + self.self_attention(each, places_1R, *kv, bias_PNR.flatten(0, 1)).view_as(x_PNRD)
        if self.chunk_attention is not None:
            together = self.chunk_norm(x_PNRD).flatten(1, 2)
            kv = self.chunk_attention.read(chunk_PMD, places_1R[:, : chunk_PMD.shape[1]])
            x_PNRD = x_PNRD + self.chunk_attention(together, places_1R.repeat(1, N), *kv).view_as(x_PNRD)
        return x_PNRD + self.mlp(self.mlp_norm(x_PNRD), memory)


class NeighbourEncoder(nn.Module):
    """Neighbours as states for cross-attention, in the light of the chunk they were found for."""

    def __init__(self, config: DecoderConfig, retro: RetroConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_EncoderBlock(config, conditioned=n == 0) for n in range(retro.encoder_layers))
        self.norm = make_norm(config)

    def forward(self, x_PNRD: Tensor, chunk_PMD: Tensor, bias_PNR: Tensor, memory: Memory) -> Tensor:
        """E_PXD: the neighbours of a set one after the other.

        Args:
            x_PNRD: their embeddings.
            chunk_PMD: the decoder's states over the chunk.
            bias_PNR: −∞ where there is no token.
        """
        for block in self.blocks:
            x_PNRD = block(x_PNRD, chunk_PMD, bias_PNR, memory)
        return self.norm(x_PNRD).flatten(1, 2)


class Retrieval:
    """What the layers of one call share: which position attends to which set of neighbours, and the sets encoded.

    Args:
        retro: the shape.
        memory: `memory.neighbours_BSNR` are the token ids of the neighbours of each chunk that the call completes, in
            order, −1 where there is none; every set may be empty.
        positions_BT: counted from 0 in each sequence or packed document.
        embed: token ids to embeddings.

    Raises:
        ModelError: the neighbours are not as many and as long as `retro` says.
    """

    def __init__(
        self, retro: RetroConfig, memory: Memory, positions_BT: Tensor, embed: Callable[[Tensor], Tensor]
    ) -> None:
        self.memory, self._M, self._embed = memory, retro.chunk, embed
        B, device = len(positions_BT), positions_BT.device
        ids_BSNR = memory.neighbours_BSNR
        if ids_BSNR is None or not (ids_BSNR.shape[1] or memory.lasting):
            ids_BSNR = positions_BT.new_full((B, 0 if memory.lasting else 1, *retro.shape), -1)
        if ids_BSNR.shape[2:] != retro.shape:
            raise _wrong_shape(tuple(ids_BSNR.shape[2:]), retro.shape)
        self._ids_BSNR = ids_BSNR
        self._offset_BT = (positions_BT + 1) % self._M
        begun_BT = (self._offset_BT == 0).cumsum(1)
        numbers_BS = torch.arange(1, ids_BSNR.shape[1] + 1, device=device).expand(B, -1).contiguous()
        self._starts_BS = torch.searchsorted(begun_BT, numbers_BS)  # T where a set begins in no position.
        self._recent_BMD: Tensor | None = None
        self._present_BSX = (ids_BSNR >= 0).flatten(2)
        if memory.lasting:  # The set that an earlier call brought stands before the call's own.
            state = memory.recall(STATE)
            carried_BX = self._present_BSX.new_zeros(B, self._present_BSX.shape[2])
            if state is not None:
                self._recent_BMD, carried_BX = state
            self._present_BSX = torch.cat((carried_BX[:, None], self._present_BSX), 1)
        index_BT = begun_BT if memory.lasting else begun_BT - 1
        self._index_BT = index_BT.clamp(0, self._present_BSX.shape[1] - 1)
        self._known_BT = self._index_BT == index_BT
        any_BT = self._present_BSX.any(-1).gather(1, self._index_BT)
        self._seen_BT = (positions_BT >= self._M - 1) & self._known_BT & any_BT
        self._encoded_PXD: Tensor | None = None

    def encode(self, encoder: NeighbourEncoder, h_BTD: Tensor) -> None:
        """Encode the sets of this call, each with the states of its chunk; called by the first layer that attends."""
        (B, T, D), M = h_BTD.shape, self._M
        recent_BMD = h_BTD.new_zeros(B, M - 1, D) if self._recent_BMD is None else self._recent_BMD
        line = torch.cat((recent_BMD, h_BTD), 1)
        if self._ids_BSNR.shape[1]:
            # A set begins with its chunk's last position, which stands M − 1 places further on in `line`.
            chunk_PMD = self._windows(line, self._starts_BS)
            bias_PNR = _bias(self._ids_BSNR.flatten(0, 1) >= 0, h_BTD.dtype)
            x_PNRD = self._embed(self._ids_BSNR.flatten(0, 1).clamp(min=0))
            self._encoded_PXD = encoder(x_PNRD, chunk_PMD, bias_PNR, self.memory)
        if self.memory.lasting:
            self.memory.keep(STATE, (line[:, T:], self._last(self._present_BSX) & self._known_BT[:, -1:]))

    def attend(self, place: str, attention: CrossAttention, h_BTD: Tensor) -> Tensor:
        """What each position gathers from its set, [B, T, D]; zero where there is none."""
        k_BSGXK, v_BSGXK = self._keys(place, attention, h_BTD)
        if h_BTD.shape[1] == 1:
            k_PGXK, v_PGXK = self._last(k_BSGXK), self._last(v_BSGXK)
            bias_PX = _bias(self._last(self._present_BSX), h_BTD.dtype)
            y_BTD = attention(h_BTD, self._M - 1 + self._offset_BT, k_PGXK, v_PGXK, bias_PX)
        else:
            y_BTD = self._attend_sets(attention, h_BTD, k_BSGXK, v_BSGXK)
        return y_BTD.masked_fill(~self._seen_BT[..., None], 0.0)

    def _attend_sets(self, attention: CrossAttention, h_BTD: Tensor, k_BSGXK: Tensor, v_BSGXK: Tensor) -> Tensor:
        starts_BS = self._starts_BS
        if self.memory.lasting:
            starts_BS = torch.cat((-self._offset_BT[:, :1], starts_BS), 1)
        x_PLD = self._windows(h_BTD, starts_BS)
        places_1L = torch.arange(self._M - 1, 2 * self._M - 1, device=h_BTD.device)[None]
        bias_PX = _bias(self._present_BSX.flatten(0, 1), h_BTD.dtype)
        y_PLD = attention(x_PLD, places_1L, k_BSGXK.flatten(0, 1), v_BSGXK.flatten(0, 1), bias_PX)
        y_BJD = y_PLD.unflatten(0, starts_BS.shape).flatten(1, 2)
        slot_BT = self._index_BT * self._M + self._offset_BT
        return y_BJD.gather(1, slot_BT[..., None].expand_as(h_BTD))

    def _keys(self, place: str, attention: CrossAttention, h_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all sets, [B, S, G, X, K]; the last set's are kept for the next call."""
        (B, S, N, R), encoded_PXD = self._ids_BSNR.shape, self._encoded_PXD
        if encoded_PXD is None:
            encoded_PXD = h_BTD.new_zeros(0, N * R, h_BTD.shape[-1])
        places_1X = torch.arange(R, device=h_BTD.device).repeat(N)[None]
        k, v = (part.unflatten(0, (B, S)) for part in attention.read(encoded_PXD, places_1X))
        if self.memory.lasting:
            state = self.memory.recall(place)
            carried = (k.new_zeros(B, *k.shape[2:]),) * 2 if state is None else state
            k, v = (torch.cat((old[:, None], new), 1) for old, new in zip(carried, (k, v), strict=True))
            self.memory.keep(place, (self._last(k), self._last(v)))
        return k, v

    def _windows(self, x_BTD: Tensor, starts_BS: Tensor) -> Tensor:
        """M positions from each start, [P, M, D]; what lies outside is never used."""
        places_BSM = starts_BS[..., None] + torch.arange(self._M, device=x_BTD.device)
        places_BJ1 = places_BSM.clamp(0, x_BTD.shape[1] - 1).flatten(1)[..., None]
        taken_BJD = x_BTD.gather(1, places_BJ1.expand(-1, -1, x_BTD.shape[-1]))
        return taken_BJD.unflatten(1, (-1, self._M)).flatten(0, 1)

    def _last(self, x_BS: Tensor) -> Tensor:
        """Of each row, the set that its last position attends to."""
        return x_BS[torch.arange(len(x_BS), device=x_BS.device), self._index_BT[:, -1]]


class ChunkedCrossAttention(nn.Module):
    """The sublayer between sequence mixer and feed-forward of some blocks; the first one encodes for all."""

    def __init__(self, config: DecoderConfig, layer: int, retro: RetroConfig) -> None:
        super().__init__()
        self.norm, self.attention = make_norm(config), CrossAttention(config)
        self.encoder = NeighbourEncoder(config, retro) if layer == retro.layers[0] else None
        self._place = f"{layer}.cross"

    def forward(self, x_BTD: Tensor, retrieval: Retrieval) -> Tensor:
        h_BTD = self.norm(x_BTD)
        if self.encoder is not None:
            retrieval.encode(self.encoder, h_BTD)
        return retrieval.attend(self._place, self.attention, h_BTD)


def _bias(present: Tensor, dtype: torch.dtype) -> Tensor:
    """−∞ on absent tokens; all zero where nothing is there, so that softmax stays finite."""
    absent = ~present & present.any(-1, keepdim=True)
    return torch.zeros(present.shape, dtype=dtype, device=present.device).masked_fill(absent, float("-inf"))


def _wrong_shape(found: tuple[int, ...], wanted: tuple[int, int]) -> ModelError:
    return ModelError(
        say(
            zh=f"每個區塊的鄰居形狀是 {list(found)}，模型需要 {list(wanted)}（個數、token 數）。",
            en=f"The neighbours of a chunk have the shape {list(found)}; the model needs {list(wanted)} "
            "(how many, tokens of each).",
        )
    )
