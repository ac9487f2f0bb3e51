"""Text as a stream of tokenised documents, so that no more of it is in memory than is worked on."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wenfang.core.corpus import read_texts
from wenfang.core.language import say
from wenfang.core.report import Reporter
from wenfang.tokenizer import Tokenizer
from wenfang.train.objective import Rows
from wenfang.train.packing import Document, pack, split_long


@dataclass
class TextCount:
    """How much text a stream of documents has held so far."""

    characters: int = 0
    size_bytes: int = 0
    tokens: int = 0
    """Tokens learned in its place."""

    def add(self, text: str, tokens: int, *, size: Callable[[str], int] = len) -> None:
        """Count one text. What `size` says of it counts as its characters."""
        self.characters += size(text)
        self.size_bytes += len(text.encode())
        self.tokens += tokens

    def pack(self, documents: Iterable[Document], context: int, folder: Path | None) -> Rows:
        """The documents, whose reading is counted here, as rows in a file in `folder`."""
        packed = pack(documents, context, folder=folder)
        return Rows(packed, self.characters / self.tokens, self.size_bytes / self.tokens)


def read_rows(path: Path, tokenizer: Tokenizer, context: int, report: Reporter, folder: Path) -> Rows:
    """One split of a corpus as rows in a file in `folder`; longer documents are cut."""
    count = TextCount()

    def pieces() -> Iterator[Document]:
        for text, whole in read_documents(path, tokenizer, report):
            count.add(text, len(whole) - 1)
            yield from split_long((whole, np.broadcast_to(True, len(whole))), context)

    return count.pack(pieces(), context, folder)


def read_documents(path: Path, tokenizer: Tokenizer, report: Reporter) -> Iterator[tuple[str, NDArray[np.int32]]]:
    """Each text of one split of a corpus, and its tokens: `<|bos|>` text `<|end|>`.

    Raises:
        DataError: the corpus cannot be read.
    """
    for texts in read_texts(path, report, say(zh=f"編碼 {path.stem}", en=f"encoding {path.stem}")):
        for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
            yield text, np.array([tokenizer.bos_id, *ids, tokenizer.end_id], np.int32)
