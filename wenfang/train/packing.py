"""Documents into rows of fixed length, best fit first, so that almost no position is wasted."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wenfang.core.language import say
from wenfang.core.report import Reporter

IGNORED = -100
"""Target value that takes no part in the loss (the convention of PyTorch's cross-entropy)."""

WRITTEN_AT_ONCE = 4096
"""Rows."""

Document = tuple[Sequence[int] | NDArray[np.int32], Sequence[bool] | NDArray[np.bool_]]
"""Token ids, and for each whether predicting it enters the loss."""


@dataclass(frozen=True)
class Packed:
    """Rows ready for training. N rows of T positions; each position predicts the next token of its document.

    `ids_NT`, `targets_NT`: int32 (targets hold IGNORED where nothing is learned).
    `documents_NT`: int16, which document of the row a position belongs to, −1 for padding.
    `positions_NT`: int16, counted from 0 within each document.
    """

    ids_NT: NDArray[np.int32]
    targets_NT: NDArray[np.int32]
    documents_NT: NDArray[np.int16]
    positions_NT: NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.ids_NT)

    def take(self, rows: NDArray[np.int64]) -> "Packed":
        """The given rows, as often as they are given."""
        return Packed(self.ids_NT[rows], self.targets_NT[rows], self.documents_NT[rows], self.positions_NT[rows])

    def joined(self, other: "Packed") -> "Packed":
        """These rows and then those of `other`, which are as long."""
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return Packed(*(np.concatenate(pair) for pair in pairs))

    @property
    def waste(self) -> float:
        """Share of positions that are padding."""
        return float((self.documents_NT < 0).mean())


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Group items into bins of `capacity`: longest first, each into the fullest bin that still has room.

    Linear in items × capacity. Every length must lie between 1 and `capacity`.
    """
    bins: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # bins by free positions
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        need = lengths[item]
        room = next((r for r in range(need, capacity + 1) if with_room[r]), None)
        if room is None:
            bins.append([])
            index, room = len(bins) - 1, capacity
        else:
            index = with_room[room].pop()
        bins[index].append(item)
        with_room[room - need].append(index)
    return bins


def pack(documents: Sequence[Document], context: int, *, folder: Path | None = None) -> Packed:
    """Pack documents of at most `context + 1` tokens into rows of `context` positions.

    A document of n tokens takes n − 1 positions, so no position ever predicts across a border.

    Args:
        folder: where given, rows are mapped from a nameless file there, so that they take memory only while they are
            read; the file ends with the process.
    """
    rows = best_fit([len(ids) - 1 for ids, _ in documents], context)
    shape = (len(rows), context)
    packed = Packed(
        ids_NT=_filled(shape, np.int32, 0, folder),
        targets_NT=_filled(shape, np.int32, IGNORED, folder),
        documents_NT=_filled(shape, np.int16, -1, folder),
        positions_NT=_filled(shape, np.int16, 0, folder),
    )
    for row, members in enumerate(rows):
        start = 0
        for number, member in enumerate(members):
            ids, learn = documents[member]
            stop = start + len(ids) - 1
            packed.ids_NT[row, start:stop] = ids[:-1]
            packed.targets_NT[row, start:stop] = np.where(learn[1:], ids[1:], IGNORED)
            packed.documents_NT[row, start:stop] = number
            packed.positions_NT[row, start:stop] = np.arange(stop - start)
            start = stop
    return packed


def _filled(shape: tuple[int, int], dtype: type[np.signedinteger], value: int, folder: Path | None) -> NDArray[Any]:
    """An array in memory, or in a file without a name.

    Raises:
        OSError: the disk is full.
    """
    if folder is None:
        return np.full(shape, value, dtype)
    with tempfile.TemporaryFile(dir=folder) as file:
        # Written, as a hole in a mapped file on a full disk would end the process without a word.
        for start in range(0, shape[0], WRITTEN_AT_ONCE):
            file.write(np.full((min(WRITTEN_AT_ONCE, shape[0] - start), shape[1]), value, dtype).tobytes())
        file.flush()
        return np.memmap(file, dtype, mode="r+", shape=shape)


def tell_waste(packed: Packed, report: Reporter) -> None:
    """Say how many rows there are and how much of them is padding."""
    N, T = packed.ids_NT.shape
    report.notice(
        say(
            zh=f"裝成 {N:,} 列，每列 {T} 個 token，{packed.waste:.1%} 是填充",
            en=f"packed into {N:,} rows of {T} tokens, {packed.waste:.1%} of them padding",
        )
    )


def split_long(document: Document, context: int) -> list[Document]:
    """Cut a document into pieces of at most `context + 1` tokens; each overlaps the last by one token, so that
    every token but the first is predicted exactly once."""
    ids, learn = document
    starts = range(0, max(len(ids) - 1, 1), context)
    return [(ids[s : s + context + 1], learn[s : s + context + 1]) for s in starts]


def batch_rows(rows: int, batch: int, step: int, seed: int) -> NDArray[np.int64]:
    """Row numbers of batch `step` (from 0): a fresh shuffle each epoch, a function of its arguments alone, so a
    resumed run sees what an undisturbed one would."""
    wanted = np.arange(step * batch, (step + 1) * batch)
    epochs = wanted // rows
    result = np.empty(batch, np.int64)
    for epoch in np.unique(epochs):
        order = np.random.default_rng((seed, int(epoch))).permutation(rows)
        chosen = epochs == epoch
        result[chosen] = order[wanted[chosen] % rows]
    return result
