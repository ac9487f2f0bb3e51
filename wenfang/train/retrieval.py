"""Training with neighbours: each complete chunk of each document brings what an index found for it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import accumulate, takewhile
from pathlib import Path

import numpy as np
import torch

from wenfang.core.errors import InputError
from wenfang.core.language import say
from wenfang.core.report import Reporter
from wenfang.data.chunks import ChunkIndex, Numbers, check_tokenizer, cut, document_key, padded
from wenfang.model import Decoder
from wenfang.model.families.native import FAMILY as NATIVE
from wenfang.model.parts import RetroConfig
from wenfang.tokenizer import Tokenizer
from wenfang.train.config import RetrievalConfig
from wenfang.train.documents import TextCount, read_documents
from wenfang.train.objective import Batch, RowNumbers, Rows
from wenfang.train.packing import Document, grouped, pack, split_long


@dataclass(frozen=True)
class Pieces:
    """One side of a corpus, tokenised, in memory: each piece is looked up."""

    documents: list[Document]
    """No longer than a row; a longer text is several."""
    keys: list[int]
    """The text that each is a piece of, by `document_key`."""
    characters_per_token: float
    bytes_per_token: float | None = None

    def rows(self, context: int, folder: Path | None) -> Rows:
        """Packed for plain training, in a file in `folder`."""
        return Rows(pack(self.documents, context, folder=folder), self.characters_per_token, self.bytes_per_token)

    def first(self, tokens: int) -> "Pieces":
        """The first pieces, as many as have `tokens` together, or all."""
        sums = accumulate((len(ids) - 1 for ids, _ in self.documents), initial=0)
        count = sum(1 for _ in takewhile(lambda before: before < tokens, sums))
        return replace(self, documents=self.documents[:count], keys=self.keys[:count])


def read_pieces(
    path: Path, tokenizer: Tokenizer, context: int, report: Reporter, *, size: Callable[[str], int] = len
) -> Pieces:
    """Tokenise one split; longer documents are cut. What `size` says of a text counts as its characters."""
    count, documents, keys = TextCount(), list[Document](), list[int]()
    for text, whole in read_documents(path, tokenizer, report):
        count.add(text, len(whole) - 1, size=size)
        pieces = split_long((whole, np.broadcast_to(True, len(whole))), context)
        documents += pieces
        keys += [document_key(text)] * len(pieces)
    return Pieces(documents, keys, count.characters / count.tokens, count.size_bytes / count.tokens)


def open_index(folder: Path, tokenizer: Tokenizer) -> ChunkIndex:
    """An index of chunks of this tokenizer.

    Raises:
        DataError: they are of another one.
        InputError: there is no index, or it is damaged.
    """
    index = ChunkIndex.load(folder)
    check_tokenizer(folder, tokenizer)
    return index


@dataclass(frozen=True)
class RetrievedRows(Rows):
    """Packed documents with the neighbours of their chunks."""

    index: ChunkIndex = field(kw_only=True)
    found_NSK: Numbers = field(kw_only=True)
    """Of each row, for each of its complete chunks in order, the numbers of its neighbours; −1 for none."""

    @property
    def plain(self) -> Rows:
        """The same rows without neighbours."""
        return Rows(self.packed, self.characters_per_token, self.bytes_per_token)

    def nearest(self, count: int) -> "RetrievedRows":
        """The same rows with the nearest `count` neighbours of each chunk."""
        return replace(self, found_NSK=self.found_NSK[..., :count])

    def batch(self, rows: RowNumbers) -> Batch:
        plain = super().batch(rows)
        neighbours_BSNR = torch.from_numpy(self.index.tokens(self.found_NSK[rows])).long()
        return replace(plain, tensors=plain.tensors | {"neighbours_BSNR": neighbours_BSNR})


def look_up(
    pieces: Pieces, context: int, index: ChunkIndex, count: int, report: Reporter, *, folder: Path | None = None
) -> RetrievedRows:
    """Rows with `count` neighbours of each chunk, none of which is of the chunk's own document; in a file in `folder`,
    by default where temporary files lie."""
    rows, M = pieces.rows(context, folder), index.chunk
    found_NSK = np.full((len(rows), context // M, count), -1, np.int64)
    chunks, keys, places = list[list[int]](), list[int](), list[tuple[int, int]]()
    for row, members in enumerate(grouped(pieces.documents, context)):
        ordered = 0
        for number, (ids, _) in members:
            for chunk in cut(list(ids[:-1]), M):
                if len(chunk) == M:
                    chunks.append(chunk)
                    keys.append(pieces.keys[number])
                    places.append((row, ordered))
                    ordered += 1
    if chunks:
        row_Q, set_Q = np.array(places).T
        found_NSK[row_Q, set_Q] = index.find(padded(chunks, M), np.array(keys), count, report)
    return RetrievedRows(rows.packed, rows.characters_per_token, rows.bytes_per_token, index=index, found_NSK=found_NSK)


def retro_config(config: RetrievalConfig, chunk: int) -> RetroConfig:
    """The shape of the decoder's retrieval."""
    return RetroConfig(chunk=chunk, **config.model_dump(exclude={"method"}))


def with_retrieval(model: Decoder, retro: RetroConfig) -> Decoder:
    """The model with layers that read neighbours; fresh ones change nothing before they have learned.

    Raises:
        InputError: it has such layers of another shape already, or too few layers.
    """
    if model.config.retro == retro:
        return model
    if model.config.retro is not None or retro.layers[-1] >= model.config.layers:
        raise InputError(
            say(
                zh=f"retrieval 要求 {retro!r}，模型有 {model.config.layers} 層，其檢索為 {model.config.retro!r}。",
                en=f"retrieval asks for {retro!r}; the model has {model.config.layers} layers and reads neighbours "
                f"as {model.config.retro!r}.",
            )
        )
    richer = Decoder(model.config.model_copy(update={"retro": retro, "family": NATIVE.model_type}))
    richer.initialise()
    richer.load_state_dict(model.state_dict(), strict=False)
    return richer
