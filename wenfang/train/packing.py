"""Documents into rows of fixed length, best fit first, so that almost no position is wasted.

Rows go to a nameless file as their documents come, so a corpus may be larger than the memory.
"""

import functools
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wenfang.core.language import say
from wenfang.core.report import Reporter

IGNORED = -100
"""Target value that takes no part in the loss (the convention of PyTorch's cross-entropy)."""

WINDOW_TOKENS = 1 << 25
"""Documents are packed among their neighbours, as many as take the memory of so many tokens: 128 MiB."""
DOCUMENT_TOKENS = 100
"""What a document takes beside its tokens, in tokens."""

Document = tuple[Sequence[int] | NDArray[np.int32], Sequence[bool] | NDArray[np.bool_]]
"""Token ids, and for each whether predicting it enters the loss."""

POSITION = np.dtype([("id", np.int32), ("target", np.int32), ("document", np.int16), ("position", np.int16)])
"""One position of a row in the file."""
PADDING = np.array((0, IGNORED, -1, 0), POSITION)


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
    padding: int = 0
    """Positions that are."""

    def __len__(self) -> int:
        return len(self.ids_NT)

    @property
    def waste(self) -> float:
        """Share of positions that are padding."""
        return self.padding / self.ids_NT.size


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


def pack(documents: Iterable[Document], context: int, *, folder: Path | None = None) -> Packed:
    """Pack documents of at most `context + 1` tokens into rows of `context` positions.

    A document of n tokens takes n − 1 positions, so no position ever predicts across a border.

    Args:
        documents: at least one; read once, a window at a time.
        folder: where the rows' file lies, by default where temporary files do. It has no name and ends with the
            process; its rows are mapped, so they take memory only while they are read.

    Raises:
        OSError: the disk is full.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        count = padding = 0
        for members in grouped(documents, context):
            row_T = _row([document for _, document in members], context)
            file.write(row_T.tobytes())  # Not through the map, where a full disk would end the process without a word.
            count += 1
            padding += int((row_T["document"] < 0).sum())
        file.flush()
        mapped_NT = np.memmap(file, POSITION, mode="r", shape=(count, context))
    return Packed(mapped_NT["id"], mapped_NT["target"], mapped_NT["document"], mapped_NT["position"], padding=padding)


def grouped(documents: Iterable[Document], context: int) -> Iterator[list[tuple[int, Document]]]:
    """The documents that share a row, with their numbers from 0 on; row by row."""
    first = 0
    for window in _windows(documents):
        for members in best_fit([len(ids) - 1 for ids, _ in window], context):
            yield [(first + member, window[member]) for member in members]
        first += len(window)
        window.clear()  # Before the next one is read.


def _windows(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """The documents in groups that memory can hold."""
    window, room = list[Document](), WINDOW_TOKENS
    for document in documents:
        window.append(document)
        room -= len(document[0]) + DOCUMENT_TOKENS
        if room <= 0:
            yield window
            window, room = [], WINDOW_TOKENS
    if window:
        yield window


def _row(documents: Iterable[Document], context: int) -> NDArray[np.void]:
    row_T, start = np.full(context, PADDING), 0
    for number, (ids, learn) in enumerate(documents):
        part = row_T[start : start + len(ids) - 1]
        part["id"] = ids[:-1]
        part["target"] = np.where(learn[1:], ids[1:], IGNORED)
        part["document"] = number
        part["position"] = np.arange(len(part))
        start += len(part)
    return row_T


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
        chosen = epochs == epoch
        result[chosen] = _shuffled(rows, seed, int(epoch))[wanted[chosen] % rows]
    return result


@functools.lru_cache(maxsize=4)  # Training and validation, and the next epoch of each: a shuffle takes long.
def _shuffled(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(rows)
