"""Chunks of documents, and an index that finds those like a given one.

A chunk is a stretch of M tokens of one document; its vector is the mean of a frozen model's final states over it, read
alone, less the mean of all chunks' (Mu & Viswanath 2018), and likeness is the cosine. faiss searches.

Shapes in names: C chunks, Q queries, M tokens of a chunk, D width of a vector, K results.
"""

import hashlib
import importlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from wenfang.core.artifact import check_artifact
from wenfang.core.errors import DataError, InputError
from wenfang.core.language import say
from wenfang.core.report import Reporter
from wenfang.core.tensors import write_tensors
from wenfang.model import Decoder, load_model
from wenfang.model.embedding import embed_text
from wenfang.tokenizer import Tokenizer

if TYPE_CHECKING:
    from faiss import Index

CHUNKS, VECTORS, EMBEDDER = "chunks.safetensors", "vectors.faiss", "embedder"
BATCH = 256
SPARE = 8
"""Results asked for beyond those wanted, as some will be of the query's own document."""
LINKS = 32
"""Neighbours of each vector in the graph of approximate search (M in Malkov & Yashunin 2016)."""
BREADTH = 128
"""Candidates kept while building and searching that graph."""
Search = Literal["exact", "hnsw"]
Ids = NDArray[np.int32]
Numbers = NDArray[np.int64]


def document_key(text: str) -> int:
    """63 bits that stand for a document, the same wherever its text stands."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def cut(ids: Sequence[int], length: int) -> Iterator[list[int]]:
    """A document's chunks; the last may be shorter."""
    return (list(ids[start : start + length]) for start in range(0, len(ids), length))


def padded(chunks: Sequence[Sequence[int]], length: int) -> Ids:
    """Chunks as one array, −1 after the last token of each."""
    ids_CM = np.full((len(chunks), length), -1, np.int32)
    for row, chunk in enumerate(chunks):
        ids_CM[row, : len(chunk)] = chunk
    return ids_CM


class ChunkIndex:
    """Chunks, their documents and their vectors.

    Args:
        ids_CM: the chunks in the order of their documents, −1 after the last token of a short one.
        keys_C: each chunk's document, by `document_key`.
        last_C: whether a chunk is the last of its document.
        embedder: the frozen model.
        mean_D: subtracted from what it makes of a chunk.
        vectors: the search structure over the chunks' vectors.
    """

    def __init__(
        self,
        ids_CM: Ids,
        keys_C: Numbers,
        last_C: NDArray[np.bool_],
        embedder: Decoder,
        mean_D: NDArray[np.float32],
        vectors: "Index",
    ) -> None:
        self._ids_CM, self._keys_C, self._last_C = ids_CM, keys_C, last_C
        self._embedder, self._mean_D, self._vectors = embedder, mean_D, vectors

    def __len__(self) -> int:
        return len(self._ids_CM)

    @property
    def chunk(self) -> int:
        """Tokens of a chunk."""
        return int(self._ids_CM.shape[1])

    @classmethod
    def build(
        cls,
        ids_CM: Ids,
        keys_C: Numbers,
        last_C: NDArray[np.bool_],
        embedder: Decoder,
        search: Search,
        report: Reporter,
    ) -> "ChunkIndex":
        """An index of these chunks."""
        faiss = _faiss()
        raw_CD = embed(embedder, ids_CM, report)
        mean_D = raw_CD.mean(0)
        kind = "Flat" if search == "exact" else f"HNSW{LINKS}"
        vectors = faiss.index_factory(raw_CD.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
        if search == "hnsw":
            faiss.ParameterSpace().set_index_parameter(vectors, "efConstruction", BREADTH)
        vectors.add(_centred(raw_CD, mean_D))
        return cls(ids_CM, keys_C, last_C, embedder, mean_D, vectors)

    def save(self, folder: Path) -> None:
        """Write chunks and vectors; the embedder's folder is the caller's to copy."""
        faiss = _faiss()
        arrays = {"ids": self._ids_CM, "keys": self._keys_C, "last": self._last_C, "mean": self._mean_D}
        write_tensors({name: torch.from_numpy(array) for name, array in arrays.items()}, folder / CHUNKS, {})
        faiss.write_index(self._vectors, str(folder / VECTORS))
        shutil.copymode(folder / VECTORS, folder / CHUNKS)  # safetensors writes files that only their owner can read.

    @classmethod
    def load(cls, folder: Path) -> "ChunkIndex":
        """Open what `save` wrote.

        Raises:
            InputError, DataError: it is missing, of another kind or damaged.
        """
        faiss = _faiss()
        check_artifact(folder, "index")
        embedder = load_model(folder / EMBEDDER)
        try:
            held = load_file(folder / CHUNKS)
            ids_CM, keys_C, last_C, mean_D = (held[name] for name in ("ids", "keys", "last", "mean"))
            vectors = faiss.read_index(str(folder / VECTORS))
        except (OSError, KeyError, SafetensorError, RuntimeError) as error:
            raise _damaged(folder, str(error).splitlines()[0]) from None
        if not len(ids_CM) == len(keys_C) == len(last_C) == vectors.ntotal or len(mean_D) != vectors.d:
            raise _damaged(folder, say(zh="各部分的大小不符", en="its parts are not of one size"))
        return cls(ids_CM, keys_C, last_C, embedder, mean_D, vectors)

    def find(self, ids_QM: Ids, keys_Q: Numbers, count: int, report: Reporter) -> Numbers:
        """The numbers of the `count` likest chunks of each query, best first, none of them of its own document;
        −1 where there are no more."""
        queries_QD = self._query_vectors(ids_QM, report)
        found_QK = np.full((len(ids_QM), count), -1, np.int64)
        waiting, breadth = np.arange(len(ids_QM)), min(count + SPARE, len(self))
        while len(waiting):
            near_QB = self._search(queries_QD[waiting], breadth)
            allowed_QB = (near_QB >= 0) & (self._keys_C[near_QB] != keys_Q[waiting, None])
            order_QB = np.argsort(~allowed_QB, axis=1, kind="stable")[:, :count]
            best_QK = np.where(
                np.take_along_axis(allowed_QB, order_QB, 1), np.take_along_axis(near_QB, order_QB, 1), -1
            )
            found_QK[waiting, : best_QK.shape[1]] = best_QK
            # A long document may fill the results by itself: its chunks are searched again, twice as broadly.
            waiting = waiting[allowed_QB.sum(1) < count] if breadth < len(self) else waiting[:0]
            breadth = min(2 * breadth, len(self))
        return found_QK

    def tokens(self, numbers: Numbers) -> Ids:
        """Neighbours as the decoder reads them: each chunk and the one that follows it, [..., 2M], −1 where there is
        no token and for the number −1."""
        following = np.minimum(numbers + 1, len(self) - 1)
        first, second = self._ids_CM[numbers].copy(), self._ids_CM[following].copy()
        first[numbers < 0] = -1
        second[(numbers < 0) | self._last_C[numbers]] = -1
        return np.concatenate((first, second), -1)

    def _search(self, queries_QD: NDArray[np.float32], breadth: int) -> Numbers:
        """The likest chunks of each query, best first, −1 where the graph led to no more."""
        faiss = _faiss()
        if isinstance(self._vectors, faiss.IndexHNSW):
            faiss.ParameterSpace().set_index_parameter(self._vectors, "efSearch", max(BREADTH, 2 * breadth))
        near_QB: Numbers = self._vectors.search(queries_QD, breadth)[1]
        return near_QB

    def _query_vectors(self, ids_QM: Ids, report: Reporter) -> NDArray[np.float32]:
        """Vectors of the queries; those of chunks that the index holds are not computed again."""
        numbers = {row.tobytes(): number for number, row in enumerate(self._ids_CM)}
        held_Q = np.array([numbers.get(row.tobytes(), -1) for row in ids_QM.astype(np.int32)], np.int64)
        vectors_QD = np.empty((len(ids_QM), self._vectors.d), np.float32)
        if (new := held_Q < 0).any():
            vectors_QD[new] = _centred(embed(self._embedder, ids_QM[new], report), self._mean_D)
        if (~new).any():
            vectors_QD[~new] = self._vectors.reconstruct_batch(held_Q[~new])
        return vectors_QD


def embed(model: Decoder, ids_CM: Ids, report: Reporter) -> NDArray[np.float32]:
    """Each chunk as a vector, [C, D]."""
    parts = []
    with report.track(say(zh="嵌入區塊", en="embedding chunks"), len(ids_CM)) as track, torch.inference_mode():
        for start in range(0, len(ids_CM), BATCH):
            ids_BM = torch.from_numpy(ids_CM[start : start + BATCH]).long()
            parts.append(embed_text(model, ids_BM, torch.float32).numpy())
            track.update(start + len(ids_BM))
    return np.concatenate(parts)


def check_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """Check that an index speaks the language of a model.

    Raises:
        DataError: its chunks are of another tokenizer.
    """
    if Tokenizer.load(folder / EMBEDDER).tokens != tokenizer.tokens:
        raise DataError(
            say(
                zh=f"索引 {str(folder)!r} 用的是另一個分詞器。請用同一分詞器的模型重做索引。",
                en=f"The index {str(folder)!r} is of another tokenizer. Make it again with a model of this one.",
            )
        )


def _faiss() -> ModuleType:
    """The search library, which is an extra.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module("faiss")
    except ModuleNotFoundError:
        raise InputError(
            say(
                zh="檢索需要 faiss，尚未安裝。請執行 pip install 'wenfang[retrieval]'。",
                en="Retrieval needs faiss, which is not installed. Run pip install 'wenfang[retrieval]'.",
            )
        ) from None


def _centred(vectors_CD: NDArray[np.float32], mean_D: NDArray[np.float32]) -> NDArray[np.float32]:
    centred_CD = vectors_CD - mean_D
    norms_C1 = np.linalg.norm(centred_CD, axis=1, keepdims=True)
    unit_CD: NDArray[np.float32] = centred_CD / np.maximum(norms_C1, 1e-12)
    return unit_CD


def _damaged(folder: Path, why: str) -> DataError:
    return DataError(
        say(
            zh=f"索引 {str(folder)!r} 無法使用：{why}。請用 data.index 重做。",
            en=f"The index {str(folder)!r} cannot be used: {why}. Make it again with data.index.",
        )
    )
