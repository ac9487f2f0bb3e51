"""Calls of the model for rows of the batch, shaped so that each row's result is its own (see `invariance`)."""

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Rows
from pathlib import Path

import torch
from torch import Tensor

from wenfang.engine.adapters import Adapters
from wenfang.engine.blocks import BLOCK, BlockPool
from wenfang.engine.cache import PagedCache
from wenfang.engine.invariance import independent_rows
from wenfang.engine.sequence import Sequence
from wenfang.model import Decoder
from wenfang.model.fused import FusedDecoder, can_fuse
from wenfang.model.memory import Memory

_PROBED_OUTPUTS = 2048
"""Wider weights behave as one this wide; trying the whole vocabulary would take seconds."""

SHORT = 64
"""A part of a prompt up to this long is computed together with others: alone it would cost little less."""


class Runner:
    """The model and its cache.

    Args:
        model: the decoder.
        blocks: of the cache.
        ahead: whether the layers that look ahead shall have a place in it too.
    """

    def __init__(self, model: Decoder, blocks: int, *, ahead: bool = False) -> None:
        # Tables are looked up in; one that doubles as lm_head comes again under that name. Our own kernel for quantised
        # weights, which are no parameters, keeps rows apart by itself.
        weights = model.named_parameters(remove_duplicate=False)
        products = [w for name, w in weights if w.ndim == 2 and not name.startswith("embed_")]
        shapes = {(w.shape[1], min(w.shape[0], _PROBED_OUTPUTS)) for w in products}
        self._dtype = model.dtype
        self._rows = independent_rows(self._dtype, shapes)
        self._model = model
        self.config = model.config
        self.adapters = Adapters(model)
        layers = range(model.config.layers, model.config.layers + model.config.ahead) if ahead else ()
        self._cache = PagedCache(model, [*model.config.attention_layers, *layers], blocks, self._rows)
        self._fused: FusedDecoder | None = None
        if can_fuse(model) and not ahead:  # Layers that look ahead go on from states in the model's dtype.
            context = min(model.config.context, blocks * BLOCK)
            self._fused = FusedDecoder(model, self._cache.keys_PGK, self._cache.values_PGV, context)

    def run(self, sequences: Rows[Sequence], counts: Rows[int]) -> list[Tensor]:
        """Hidden_TD of the next `count` tokens of each sequence, whose keys and values are then in the cache, for which
        the blocks must be reserved."""
        return self._each_by_its_way(sequences, counts, self._run_torch)

    def read(self, sequences: Rows[Sequence], counts: Rows[int]) -> list[Tensor]:
        """As `run`, for parts of prompts: what would mostly fill up others' rows is computed in calls of its own."""
        return self._each_by_its_way(sequences, counts, self._run_in_groups)

    def _each_by_its_way(
        self,
        sequences: Rows[Sequence],
        counts: Rows[int],
        run_torch: Callable[[Rows[Sequence], Rows[int]], list[Tensor]],
    ) -> list[Tensor]:
        """Compiled code knows no adapters; rows without one take its way even beside others, so as to be the same."""
        states: dict[int, Tensor] = {}
        fits = [self._fused is not None and sequence.adapter is None for sequence in sequences]
        compiled, others = ([i for i, fit in enumerate(fits) if fit is wanted] for wanted in (True, False))
        for rows, run in ((compiled, self._run_fused), (others, run_torch)):
            if rows:
                states |= zip(rows, run([sequences[i] for i in rows], [counts[i] for i in rows]), strict=True)
        return [states[i] for i in range(len(sequences))]

    def _run_fused(self, sequences: Rows[Sequence], counts: Rows[int]) -> list[Tensor]:
        """In fp32; each token is a row of its own."""
        assert self._fused is not None
        spans = [range(s.computed, s.computed + count) for s, count in zip(sequences, counts, strict=True)]
        rows = [(s, position) for s, span in zip(sequences, spans, strict=True) for position in span]
        hidden_ND = self._fused.hidden([s.tokens[i] for s, i in rows], [i for _, i in rows], [s.table for s, _ in rows])
        return list(hidden_ND.split(list(counts)))

    def _run_torch(self, sequences: Rows[Sequence], counts: Rows[int]) -> list[Tensor]:
        """Layer by layer; rows with fewer tokens than others end with padding, which a recurrent model cannot have."""
        if self.config.recurrent and len({sequence.computed > 0 for sequence in sequences}) > 1:
            # A recurrent layer begins all its rows with a state or none.
            each = zip(sequences, counts, strict=True)
            return [state for sequence, count in each for state in self._run_torch([sequence], [count])]
        positions_BT, memory = self._call(sequences, counts)
        ids_BT = torch.zeros_like(positions_BT)
        for row, (sequence, count) in enumerate(zip(sequences, counts, strict=True)):
            ids_BT[row, :count] = torch.tensor(sequence.tokens[sequence.computed : sequence.computed + count])
        padding = [None] * (len(ids_BT) - len(sequences))
        with self.adapters.routing.to([*(sequence.adapter for sequence in sequences), *padding]):
            hidden_BTD = self._model.hidden(ids_BT, positions_BT, memory, self._dtype)
        if self._fused is not None:
            hidden_BTD = hidden_BTD.float()
        return [hidden_TD[:count] for hidden_TD, count in zip(hidden_BTD, counts, strict=False)]  # Then comes padding.

    def _run_in_groups(self, sequences: Rows[Sequence], counts: Rows[int]) -> list[Tensor]:
        states: dict[int, Tensor] = {}
        for rows in _together(counts, alike=self.config.recurrent):
            states |= zip(rows, self._run_torch([sequences[i] for i in rows], [counts[i] for i in rows]), strict=True)
        return [states[i] for i in range(len(sequences))]

    def load_adapter(self, name: str, folder: Path) -> None:
        """Read a PEFT folder; from now on products have as many rows as its products need, too."""
        shapes = {
            (inputs, min(outputs, _PROBED_OUTPUTS)) for inputs, outputs in self.adapters.load(name, folder).shapes
        }
        self._rows = max(self._rows, independent_rows(self._dtype, shapes))
        self._cache.queries = max(self._cache.queries, self._rows)

    def look_ahead(self, depth: int, sequences: Rows[Sequence], states: Rows[Tensor]) -> list[Tensor]:
        """States_TD that predict one token further, from each sequence's states_TD of the depth before.

        Args:
            depth: 1 for the first layer that looks ahead.
            sequences: each with the position of its first state as `computed`, and tokens `depth` past the last.
        """
        counts = [len(states_TD) for states_TD in states]
        positions_BT, memory = self._call(sequences, counts)
        ids_BT = torch.zeros_like(positions_BT)
        x_BTD = states[0].new_zeros((*ids_BT.shape, self.config.dim))
        for row, (sequence, states_TD) in enumerate(zip(sequences, states, strict=True)):
            first = sequence.computed + depth
            ids_BT[row, : len(states_TD)] = torch.tensor(sequence.tokens[first : first + len(states_TD)])
            x_BTD[row, : len(states_TD)] = states_TD
        x_BTD = self._model.look_further(depth, x_BTD, ids_BT, positions_BT, memory)
        return [x_BTD[row, :count] for row, count in enumerate(counts)]

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Logits_NV in fp32."""
        N = len(hidden_ND)
        padding = hidden_ND[:1].expand(self._padded(N) - N, -1)
        return self._model.logits(torch.cat((hidden_ND, padding)))[:N].float()

    def fork(self, sequence: Sequence, pool: BlockPool) -> Sequence:
        """A second sequence with the same tokens. Where no block is left for the unfinished last one, the fork's few
        tokens in it, and all of them before a recurrent layer, are computed again later."""
        fork = sequence.fork(pool)
        if fork.computed < sequence.computed and fork.reserve(pool, sequence.computed):
            for source, target in zip(
                sequence.table[len(fork.identities) :], fork.table[len(fork.identities) :], strict=True
            ):
                self._cache.copy(source, target)
            fork.computed = sequence.computed
        if fork.computed == sequence.computed:
            fork.states = dict(sequence.states)
        elif self.config.recurrent:
            fork.release(pool)
        return fork

    def _call(self, sequences: Rows[Sequence], counts: Rows[int]) -> tuple[Tensor, Memory]:
        """Positions_BT of a call and its memory. Padding stands at its row's last position: some rotary embeddings turn
        by the farthest one."""
        B, T = self._shape(len(sequences), max(counts))
        positions_BT = torch.zeros((B, T), dtype=torch.long)
        for row, (sequence, count) in enumerate(zip(sequences, counts, strict=True)):
            positions_BT[row] = sequence.computed + torch.arange(T).clamp(max=count - 1)
        return positions_BT, self._cache.memory(sequences, counts, B, T)

    def _shape(self, N: int, T: int) -> tuple[int, int]:
        """Rows and columns of a call, so many that the products of its layers have enough rows."""
        if N == 1 and not self.config.recurrent:
            return N, self._padded(T)
        rows = self._rows
        # Padding rows, not columns: a state must not read any.
        return next(B for B in range(N, N + rows) if B * T % rows == 0), T

    def _padded(self, rows: int) -> int:
        return rows + -rows % self._rows


def _together(counts: Rows[int], *, alike: bool) -> Iterator[list[int]]:
    """Rows that are computed in one call, where the shorter ones are filled up: each of `SHORT` tokens at most, and at
    least half as long as the longest.

    Args:
        counts: tokens of each row.
        alike: whether nothing may be filled up.
    """
    group: list[int] = []
    for row in sorted(range(len(counts)), key=lambda row: -counts[row]):
        longest = counts[group[0]] if group else 0
        if longest > SHORT or counts[row] < (longest if alike else longest / 2):
            yield group
            group = []
        group.append(row)
    if group:
        yield group
