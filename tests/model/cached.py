"""Rows of known tokens through the engine's cache, as far at a time as a test wants."""

import torch
from torch import Tensor

from wenfang.engine.blocks import BLOCK, BlockPool
from wenfang.engine.runner import Runner
from wenfang.engine.sequence import Sequence
from wenfang.model import Decoder


class Cached:
    """Sequences of one model, one for each of the rows [B, T]."""

    def __init__(self, model: Decoder, rows_BT: Tensor) -> None:
        blocks = len(rows_BT) * -(-rows_BT.shape[1] // BLOCK)
        self._pool, self._runner = BlockPool(blocks), Runner(model, blocks)
        self._sequences = [Sequence(row) for row in rows_BT.tolist()]

    def read(self, rows: list[int], count: int) -> Tensor:
        """Logits [rows, count, V] of the next tokens of some of the rows, read in one call."""
        sequences = [self._sequences[row] for row in rows]
        for sequence in sequences:
            assert sequence.reserve(self._pool, sequence.computed + count)
        states = self._runner.run(sequences, [count] * len(sequences))
        for sequence in sequences:
            sequence.advance(self._pool, count)
        return self._runner.logits(torch.cat(states)).unflatten(0, (len(rows), count))
