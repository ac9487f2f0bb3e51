"""What the running sequences have left behind: keys and values in blocks of a shared pool, and recurrent states.

Shapes: P places (tokens) of the pool, B rows, T new tokens, N some of the rows, S keys seen, H/G query/key heads,
K/V key/value width.

A token's attention is computed over keys padded to the end of its `TILE`, with a multiple of so many queries at a
time: then the kernel adds the same numbers in the same order whether the token comes in a prompt, alone, or beside
others, and the result is the same to the last bit.
"""

from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from wenfang.core.hardware import detect
from wenfang.engine.blocks import BLOCK, SPARE
from wenfang.engine.sequence import Sequence
from wenfang.model import Decoder
from wenfang.model.memory import AttentionSpec, Memory, Sight, State, attention
from wenfang.native.pages import LargePages

TILE = 4 * BLOCK
"""Keys are padded to a multiple of this."""

MOST_MEMORY = 0.5
"""Share of the machine's memory that a cache may come to, unless more is asked for."""

LEAST_QUERIES = 4
"""torch's attention adds up in another order for fewer queries than this, in bf16 as in fp32."""


class PagedCache:
    """The pool itself.

    Args:
        model: whose keys and values these are.
        layers: numbers of the attention layers to keep them for.
        blocks: how many blocks of `BLOCK` tokens, besides the spare one.
        rows: least number of rows of a matrix product for which each row's result stands alone.
    """

    def __init__(self, model: Decoder, layers: Iterable[int], blocks: int, rows: int) -> None:
        weight, places = next(model.parameters()), (blocks + 1) * BLOCK
        heads, key_width, value_width = model.config.kv_shape()
        layers = list(layers)
        size = places * heads * weight.itemsize
        on_cpu = weight.device.type == "cpu"
        room = LargePages([size * key_width, size * value_width] * len(layers) if on_cpu else ())
        zeros = room.zeros if on_cpu else partial(torch.zeros, device=weight.device)
        self.keys_PGK = {layer: zeros(places, heads, key_width, dtype=weight.dtype) for layer in layers}
        self.values_PGV = {layer: zeros(places, heads, value_width, dtype=weight.dtype) for layer in layers}
        self.queries = max(rows, LEAST_QUERIES)

    def copy(self, source: int, target: int) -> None:
        """Copy one block's content."""
        for pool in (*self.keys_PGK.values(), *self.values_PGV.values()):
            pool[target * BLOCK : (target + 1) * BLOCK] = pool[source * BLOCK : (source + 1) * BLOCK]

    def memory(self, sequences: Rows[Sequence], counts: Rows[int], B: int, T: int) -> Memory:
        """For a call of B rows and T columns, of which each given sequence fills the first columns of one row with
        its next `count` tokens. What is padding attends to nothing and is kept nowhere."""
        return _Pages(self, sequences, counts, B, T)


def affordable_blocks(model: Decoder, wanted: int) -> int:
    """As many blocks as wanted, or as `MOST_MEMORY` allows; at least one."""
    per_token = len(model.config.attention_layers) * _token_bytes(model)
    return max(1, min(wanted, int(MOST_MEMORY * detect().memory_bytes) // max(1, BLOCK * per_token)))


def _token_bytes(model: Decoder) -> int:
    """Of one token in one layer."""
    heads, key_width, value_width = model.config.kv_shape()
    return heads * (key_width + value_width) * model.dtype.itemsize


@dataclass(frozen=True)
class _Tile:
    """Queries of several rows that see equally many keys."""

    rows_N: Tensor
    columns: slice
    places_NS: Tensor
    sight: Sight
    padding: int
    """Queries to add, so that there is a multiple of enough of them."""


class _Pages(Memory):
    """Some sequences during one call."""

    lasting = True

    def __init__(self, cache: PagedCache, sequences: Rows[Sequence], counts: Rows[int], B: int, T: int) -> None:
        super().__init__()
        self._cache, self._sequences, self._B = cache, sequences, B
        places_BT = torch.full((B, T), SPARE * BLOCK)
        for row, (sequence, count) in enumerate(zip(sequences, counts, strict=True)):
            positions_T = torch.arange(sequence.computed, sequence.computed + count)
            table = torch.tensor(sequence.table)
            places_BT[row, :count] = table[positions_T // BLOCK] * BLOCK + positions_T % BLOCK
        self._places = places_BT.flatten()
        self._tiles = [self._tile(*key, rows) for key, rows in _group(sequences, counts).items()]

    def attend(self, layer: int, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTV: Tensor, spec: AttentionSpec) -> Tensor:
        keys_PGK, values_PGV = self._cache.keys_PGK[layer], self._cache.values_PGV[layer]
        self._write(keys_PGK, k_BGTK)
        if spec.latent is None:
            self._write(values_PGV, v_BGTV)
        context_BHTV = q_BHTK.new_zeros(*q_BHTK.shape[:3], v_BGTV.shape[-1])
        for tile in self._tiles:
            k_NGSK = keys_PGK[tile.places_NS].transpose(1, 2)
            latent = spec.latent
            v_NGSV = values_PGV[tile.places_NS].transpose(1, 2) if latent is None else k_NGSK[..., :latent]
            q_NHTK = F.pad(q_BHTK[tile.rows_N, :, tile.columns], (0, 0, 0, tile.padding))
            context_NHTV = attention(q_NHTK, k_NGSK, v_NGSV, tile.sight, spec)
            length = context_NHTV.shape[2] - tile.padding
            context_BHTV[tile.rows_N, :, tile.columns] = context_NHTV[:, :, :length]
        return context_BHTV

    def recall(self, place: str) -> State | None:
        states = [sequence.states[place] for sequence in self._sequences if place in sequence.states]
        if not states:
            return None
        padded = states + states[:1] * (self._B - len(states))
        return tuple(torch.cat(parts) for parts in zip(*padded, strict=True))

    def keep(self, place: str, state: State) -> None:
        for row, sequence in enumerate(self._sequences):
            sequence.states[place] = tuple(part[row : row + 1] for part in state)

    def _write(self, pool: Tensor, new_BGTK: Tensor) -> None:
        pool.index_copy_(0, self._places, new_BGTK.transpose(1, 2).flatten(0, 1))

    def _tile(self, first: int, last: int, S: int, rows: list[int]) -> _Tile:
        padding = -(last - first) % self._cache.queries
        columns_T = torch.arange(first, last + padding).clamp(max=last - 1)
        queries_NT = torch.tensor([[self._sequences[row].computed] for row in rows]) + columns_T
        tables = [self._sequences[row].table[: S // BLOCK] for row in rows]
        table_NM = torch.tensor([table + [SPARE] * (S // BLOCK - len(table)) for table in tables])
        places_NS = (table_NM[:, :, None] * BLOCK + torch.arange(BLOCK)).flatten(1)
        sight = Sight(queries_NT, torch.arange(S)[None])
        return _Tile(torch.tensor(rows), slice(first, last), places_NS, sight, padding)


def _group(sequences: Rows[Sequence], counts: Rows[int]) -> dict[tuple[int, int, int], list[int]]:
    """Rows by (first column, last column, keys seen): the queries between two ends of tiles."""
    groups: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for row, (sequence, count) in enumerate(zip(sequences, counts, strict=True)):
        start, end = sequence.computed, sequence.computed + count
        while start < end:
            S = (start // TILE + 1) * TILE
            groups[start - sequence.computed, min(S, end) - sequence.computed, S].append(row)
            start = S
    return groups
