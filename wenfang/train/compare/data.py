"""What the variants learn from: rows of running text, or documents with the neighbours of their chunks.

Shapes in names: N rows, T time.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from wenfang.core.corpus import read_texts
from wenfang.core.errors import DataError, InputError
from wenfang.core.language import say
from wenfang.core.report import Reporter
from wenfang.model import DecoderConfig
from wenfang.tokenizer import Tokenizer
from wenfang.train.compare.config import CompareConfig
from wenfang.train.objective import Rows
from wenfang.train.packing import Packed
from wenfang.train.retrieval import RetrievedRows, look_up, open_index, read_pieces


@dataclass(frozen=True)
class Text:
    """One split as a single stream of tokens."""

    ids: torch.Tensor
    bytes_per_token: float

    def rows(self, context: int) -> Rows:
        """The stream cut into rows, each one document of its own."""
        count = (len(self.ids) - 1) // context
        ids_NT, targets_NT = (
            self.ids[start : start + count * context].view(count, context).numpy().astype(np.int32) for start in (0, 1)
        )
        documents_NT = np.zeros((count, context), np.int16)
        positions_NT = np.broadcast_to(np.arange(context, dtype=np.int16), (count, context)).copy()
        # The loop's "characters" are bytes here, so its figures are bits per byte.
        return Rows(Packed(ids_NT, targets_NT, documents_NT, positions_NT), self.bytes_per_token)


@dataclass(frozen=True)
class Data:
    """What the variants learn and are measured on."""

    plain: tuple[Rows, Rows]
    """Training and validation."""
    found: tuple[RetrievedRows, RetrievedRows] | None = None
    """The same rows with neighbours."""
    text: Text | None = None
    """The validation split as running text, for rows of other lengths."""

    def sides(self, shape: DecoderConfig) -> tuple[Rows, Rows]:
        """Training and validation for one variant, with as many neighbours as it reads."""
        if shape.retro is None or self.found is None:
            return self.plain
        training, validation = (rows.nearest(shape.retro.neighbours) for rows in self.found)
        return training, validation


def running_text(config: CompareConfig, tokenizer: Tokenizer, report: Reporter) -> Data:
    """Both splits as running text, cut into rows."""
    training, validation = (
        _read(config.corpus / f"{split}.parquet", tokenizer, config, report) for split in ("train", "validation")
    )
    return Data((training.rows(config.context), validation.rows(config.context)), text=validation)


def with_neighbours(config: CompareConfig, tokenizer: Tokenizer, report: Reporter) -> Data:
    """Documents packed into rows, and what the index finds for them.

    Raises:
        InputError: a variant reads chunks of another length than those of the index.
    """
    assert config.index is not None
    index = open_index(config.index, tokenizer)
    neighbours = _most_neighbours(config, tokenizer.vocab_size, index.chunk)
    wanted = config.steps * config.accumulate * config.batch * config.context
    training, validation = (
        look_up(
            read_pieces(
                config.corpus / f"{split}.parquet", tokenizer, config.context, report, size=lambda t: len(t.encode())
            ).first(wanted),
            config.context,
            index,
            neighbours,
            report,
        )
        for split in ("train", "validation")
    )
    return Data((training.plain, validation.plain), found=(training, validation))


def _most_neighbours(config: CompareConfig, vocab_size: int, chunk: int) -> int:
    """As many as any variant reads, all of them in chunks of this length."""
    most = 0
    for name in config.variants:
        retro = config.shape(name, vocab_size).retro
        if retro and retro.chunk != chunk:
            raise InputError(
                say(
                    zh=f"variants.{name}：retro.chunk={retro.chunk}，索引的區塊長 {chunk}。請改成一樣。",
                    en=f"variants.{name}: retro.chunk={retro.chunk}, but the index has chunks of {chunk}. "
                    "Make them equal.",
                )
            )
        most = max(most, retro.neighbours if retro else 0)
    return most


def _read(path: Path, tokenizer: Tokenizer, config: CompareConfig, report: Reporter) -> Text:
    """As much of a split as the budget reads, one document after another."""
    longest = config.extrapolate * config.context
    wanted = max(config.steps * config.accumulate * config.batch * config.context, 64 * longest) + 1
    ids: list[int] = []
    size = 0
    for texts in read_texts(path, report, say(zh=f"編碼 {path.stem}", en=f"encoding {path.stem}")):
        if len(ids) < wanted:
            size += sum(len(text.encode()) for text in texts)
            for document in tokenizer.encode_batch(texts):
                ids += [tokenizer.bos_id, *document, tokenizer.end_id]
    if len(ids) <= longest:
        raise DataError(
            say(
                zh=f"{str(path)!r} 只有 {len(ids)} 個 token，不足一列 {longest}。",
                en=f"{str(path)!r} has only {len(ids)} tokens, less than one row of {longest}.",
            )
        )
    return Text(torch.tensor(ids), size / len(ids))
