"""A quantised decoder whose layers are computed in one call of compiled code, over a paged cache.

Shapes in names: N rows (tokens of any sequences), D model width, O outputs, S positions, F half the rotated width.
"""

import ctypes
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wenfang.model.attention import Attention
from wenfang.model.decoder import Block, Decoder
from wenfang.model.feedforward import FeedForward
from wenfang.model.norm import RMSNorm
from wenfang.model.parts import RopeConfig
from wenfang.model.position import rotation
from wenfang.model.quantized import QuantizedLinear
from wenfang.native.decoder import LANES, Call, Layer, Shape, step
from wenfang.native.quantized import Weight, describe

TURNED_TOGETHER = 1024
"""Positions whose angles are computed before any has them."""


def can_fuse(model: Decoder) -> bool:
    """Whether compiled code knows every part of this decoder: attention with rotary positions or none, RMSNorm, gated
    feed-forwards, all projections quantised."""
    config = model.config
    odd = (
        config.mla or config.moe or config.retro or config.recurrent or config.alibi or config.absolute_positions,
        config.attention_gate or config.qkv_clip or config.embedding_norm,
        config.norm != "rms" or not config.gated or config.activation not in ("silu", "gelu_tanh"),
        config.head_dim % LANES,
        # These turn by the longest position of the sequence, so there is no table by position.
        any(rope and rope.scaling and rope.scaling.type in ("dynamic", "longrope") for rope in config.ropes),
    )
    quantised = isinstance(model.lm_head, QuantizedLinear)
    return quantised and not any(odd) and model.dtype == torch.bfloat16 and step() is not None


class FusedDecoder:
    """The layers and the final norm of a decoder that `can_fuse`.

    Args:
        model: the decoder.
        keys_PGK, values_PGK: by layer, the places of a paged cache in bf16.
        context: positions that rows may have.
    """

    def __init__(
        self, model: Decoder, keys_PGK: Mapping[int, Tensor], values_PGK: Mapping[int, Tensor], context: int
    ) -> None:
        config = model.config
        self._model = model
        self._kept: list[Tensor] = [*keys_PGK.values(), *values_PGK.values()]
        self._context, self._turned = context, 0
        self._tables = {rope: self._table(rope) for rope in config.ropes if rope}
        layers = [
            self._layer(block, layer, keys_PGK[layer], values_PGK[layer])
            for layer, block in enumerate(model.layers)
            if isinstance(block, Block)
        ]
        self._layers = (Layer * len(layers))(*layers)
        self._shape = Shape(
            self._layers,
            self._norm(model.norm),
            *(len(layers), config.dim, config.heads, config.kv_heads, config.head_dim, config.hidden),
            config.qk_norm == "projection",
            config.activation == "gelu_tanh",
            *(config.norm_eps, config.attention_scale or config.head_dim**-0.5, config.attention_softcap or 0.0),
        )

    def hidden(self, ids: Sequence[int], positions: Sequence[int], tables: Sequence[Sequence[int]]) -> Tensor:
        """Final normalised states x_ND in fp32.

        Args:
            ids: the tokens, row by row; those of one sequence in order.
            positions: of each row.
            tables: of each row, the cache blocks of its sequence; neighbours of one sequence have the same object.
        """
        self._turn(max(positions) + 1)
        x_ND = self._model.embed(torch.tensor(ids), torch.bfloat16).float().contiguous()
        blocks: list[int] = []
        starts: list[int] = []
        for row, table in enumerate(tables):
            if row and table is tables[row - 1]:
                starts.append(starts[-1])
            else:
                starts.append(len(blocks))
                blocks += table
        numbers = [torch.tensor(values, dtype=torch.int32) for values in (positions, blocks, starts)]
        pointers = [tensor.data_ptr() for tensor in (x_ND, *numbers)]
        compute = step()
        assert compute is not None  # `can_fuse` saw it.
        compute(ctypes.byref(self._shape), ctypes.byref(Call(*pointers, len(ids), torch.get_num_threads())))
        return x_ND

    def _layer(self, block: Block, layer: int, keys_PGK: Tensor, values_PGK: Tensor) -> Layer:
        config, mixer, mlp = self._model.config, block.mixer, block.mlp
        assert isinstance(mixer, Attention)
        assert isinstance(mlp, FeedForward)
        attention = (mixer.q_proj, mixer.k_proj, mixer.v_proj, mixer.o_proj)
        norms = (block.mixer_norm, block.mixer_post_norm, block.mlp_norm, block.mlp_post_norm)
        heads = (mixer.q_norm, mixer.k_norm) if config.qk_norm else (None, None)
        rope = config.rope(layer)
        cos, sin = (table.data_ptr() for table in self._tables[rope]) if rope else (None, None)
        return Layer(
            *(self._weight(part) for part in (*attention, mlp.gate_proj, mlp.up_proj, mlp.down_proj)),
            *(self._norm(norm) for norm in (*norms, *heads)),
            None if mixer.sinks is None else self._numbers(mixer.sinks),
            *(cos, sin, keys_PGK.data_ptr(), values_PGK.data_ptr()),
            *(config.rope_width(rope) if rope else 0, config.window(layer) or 0),
        )

    def _weight(self, projection: nn.Module | None) -> Weight:
        assert isinstance(projection, QuantizedLinear)
        bias_O = None
        if projection.bias is not None:
            bias_O = F.pad(projection.bias.float(), (0, -projection.out_features % LANES))
            self._kept.append(bias_O)
        self._kept += [projection.codes, projection.scales]
        return describe(projection.packed, bias_O)

    def _norm(self, norm: nn.Module | None) -> int | None:
        if not isinstance(norm, RMSNorm):
            return None
        return self._numbers(1 + norm.weight.float() if norm.offset else norm.weight)

    def _table(self, rope: RopeConfig) -> tuple[Tensor, Tensor]:
        """Room for cosines and sines [S, F], which takes memory where it is written."""
        shape = self._context, self._model.config.rope_width(rope) // 2
        return torch.empty(shape), torch.empty(shape)

    def _turn(self, end: int) -> None:
        """Fill the tables for positions up to `end`: few texts are as long as the context, for which those of a small
        model take 67 MB. Always by the same steps, as no result may depend on who came before."""
        while self._turned < end:
            new = slice(self._turned, min(self._context, self._turned + TURNED_TOGETHER))
            for rope, tables in self._tables.items():
                positions_1S = torch.arange(new.start, new.stop)[None]
                found = rotation(rope, self._model.config.rope_width(rope), positions_1S, torch.float32)
                for table_SF, values_11SF in zip(tables, found, strict=True):
                    table_SF[new] = values_11SF[0, 0]
            self._turned = new.stop

    def _numbers(self, values: Tensor) -> int:
        """Where fp32 copies of some numbers stay."""
        self._kept.append(values.detach().float().contiguous())
        return self._kept[-1].data_ptr()
