"""Training what retrieves together with what reads: REALM (Guu et al. 2020).

A document z is a latent variable: p(y | x) = Σ_z p(z | x) · p(y | z, x). Of the sum, the likest documents by the index
are taken, and the empty one, which is what the model knows by itself. p(z | x) is a softmax over cosines of the
model's own vectors of x and z, so the gradient of the marginal likelihood moves towards x whatever helped.

Here x is a chunk, y the next one of its document, and z a neighbour of x, read before it. Making the index again with
the trained model is the paper's refresh.

Shapes in names: B rows, Z documents of a row, R tokens of a document, M tokens of a chunk, T tokens of z, x and y,
P pairs of chunks, K neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from wenfang.core.errors import DataError
from wenfang.core.language import say
from wenfang.core.report import Reporter
from wenfang.data.chunks import ChunkIndex, Ids, Numbers, cut, padded
from wenfang.model import Decoder
from wenfang.model.embedding import embed_text
from wenfang.model.memory import Memory
from wenfang.train.loss import target_nats
from wenfang.train.objective import Batch, Loss, RowNumbers
from wenfang.train.packing import IGNORED
from wenfang.train.retrieval import Pieces

TEMPERATURE = 0.1
"""Of the softmax over cosines; a document as like as can be is e¹⁰ times as probable as one at right angles."""


@dataclass(frozen=True)
class MarginalLikelihood:
    """−log Σ_z p(z | x) p(y | z, x) in nats, summed over the rows (Guu et al. 2020, equation 1).

    Tensors: `queries_BM` (x) and `documents_BZR` (z), −1 after the last token; `present_BZ`, whether there is such a
    document, the first one always the empty; `ids_BZT` and `targets_BZT`, each document before x and y, of which y is
    learned.
    """

    dtype: torch.dtype
    """Arithmetic of the activations."""

    def __call__(self, model: Decoder, **tensors: torch.Tensor) -> Loss:
        ids_BZT, targets_BZT = tensors["ids_BZT"], tensors["targets_BZT"]
        query_BD = embed_text(model, tensors["queries_BM"], self.dtype)
        document_BZD = embed_text(model, tensors["documents_BZR"].flatten(0, 1), self.dtype).view(
            *ids_BZT.shape[:2], -1
        )
        scores_BZ = (document_BZD @ query_BD[..., None])[..., 0] / TEMPERATURE
        prior_BZ = scores_BZ.masked_fill(~tensors["present_BZ"], float("-inf")).log_softmax(1)
        positions_NT = torch.arange(ids_BZT.shape[2], device=ids_BZT.device).expand(ids_BZT[..., 0].numel(), -1)
        states_NTD = model.hidden(ids_BZT.flatten(0, 1), positions_NT, Memory(), self.dtype)
        nats_N = target_nats(model, states_NTD.flatten(0, 1), targets_BZT.flatten())
        likelihood_BZ = -nats_N.view_as(ids_BZT).sum(-1)
        marginal_B = (prior_BZ + likelihood_BZ).logsumexp(1)
        # How much the documents help beyond what the model knows (the paper's retrieval utility, of all together).
        return Loss(-marginal_B.sum(), {"retrieval_utility": (marginal_B - likelihood_BZ[:, 0]).detach().sum()})


@dataclass(frozen=True)
class Continuations:
    """Pairs of a chunk and the next one of its document, with the neighbours of the first."""

    index: ChunkIndex
    ids_PM: Ids
    next_PM: Ids
    """−1 after the last token of a document."""
    found_PK: Numbers
    characters_per_token: float
    bytes_per_token: float | None = None

    def __len__(self) -> int:
        return len(self.ids_PM)

    def without_documents(self) -> "Continuations":
        """The same with nothing found."""
        return replace(self, found_PK=self.found_PK[:, :0])

    def batch(self, rows: RowNumbers) -> Batch:
        found_BK, M = self.found_PK[rows], self.index.chunk
        documents_BZR = np.concatenate((np.full((len(rows), 1, 2 * M), -1), self.index.tokens(found_BK)), 1)
        ids_BZT = np.zeros((*documents_BZR.shape[:2], 4 * M - 1), np.int64)
        targets_BZT = np.full_like(ids_BZT, IGNORED)
        for row, (read, learned) in enumerate(zip(self.ids_PM[rows], self.next_PM[rows], strict=True)):
            learned = learned[learned >= 0]
            for number, document in enumerate(documents_BZR[row]):
                text = np.concatenate((document[document >= 0], read, learned))
                stop = len(text) - 1
                ids_BZT[row, number, :stop] = text[:-1]
                targets_BZT[row, number, stop - len(learned) : stop] = learned
        present_BZ = np.concatenate((np.ones((len(rows), 1), bool), found_BK >= 0), 1)
        arrays = {
            "queries_BM": self.ids_PM[rows].astype(np.int64),
            "documents_BZR": documents_BZR.astype(np.int64),
            "present_BZ": present_BZ,
            "ids_BZT": ids_BZT,
            "targets_BZT": targets_BZT,
        }
        learned_tokens = int((self.next_PM[rows] >= 0).sum())
        return Batch(
            tensors={name: torch.from_numpy(array) for name, array in arrays.items()},
            count=learned_tokens,
            tokens=present_BZ.shape[1] * (learned_tokens + self.ids_PM[rows].size),
        )


def continuations(pieces: Pieces, index: ChunkIndex, count: int, report: Reporter) -> Continuations:
    """The pairs of chunks in these documents.

    Raises:
        DataError: none is longer than a chunk.
    """
    M = index.chunk
    read, following, keys = list[Sequence[int]](), list[Sequence[int]](), list[int]()
    for (ids, _), key in zip(pieces.documents, pieces.keys, strict=True):
        chunks = list(cut(list(ids), M))
        read += chunks[:-1]
        following += chunks[1:]
        keys += [key] * (len(chunks) - 1)
    if not read:
        raise DataError(
            say(
                zh=f"沒有任何文件長於一個區塊（{M} 個 token）。請用較小的 chunk 重做索引。",
                en=f"No document is longer than a chunk ({M} tokens). Make the index again with a smaller chunk.",
            )
        )
    ids_PM = padded(read, M)
    found_PK = index.find(ids_PM, np.array(keys), count, report)
    return Continuations(
        index, ids_PM, padded(following, M), found_PK, pieces.characters_per_token, pieces.bytes_per_token
    )
