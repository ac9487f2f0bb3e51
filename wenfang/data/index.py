"""Stage `data.index`: the training side of a corpus becomes an index of its chunks, for models that look things up."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from wenfang.core.artifact import MANIFEST, Summary, check_artifact
from wenfang.core.config import Config, Corpus, ModelFolder
from wenfang.core.forecast import Forecast
from wenfang.core.language import say
from wenfang.core.report import Reporter

if TYPE_CHECKING:
    from wenfang.data.chunks import ChunkIndex


class IndexConfig(Config):
    """Cut a corpus into chunks and index them by what a model makes of them."""

    corpus: Corpus
    """The corpus to cut; only its training split is read."""
    model: ModelFolder
    """Reads each chunk once, frozen, and gives the vector it is found by; its tokenizer cuts the chunks."""
    chunk: int = Field(default=16, gt=1)
    """Tokens of a chunk."""
    search: Literal["exact", "hnsw"] = "exact"
    """exact: compare with every chunk. hnsw: follow a graph of neighbours, for more than some hundred thousand."""


def run(config: IndexConfig, out: Path, report: Reporter) -> Summary:
    """Write `chunks.safetensors`, `vectors.faiss`, the model as `embedder/` and `README.md` into `out`.

    Raises:
        InputError, DataError: the corpus or the model is missing, of another kind or damaged.
    """
    from wenfang.data.chunks import EMBEDDER

    check_artifact(config.corpus, "corpus")
    index = _build(config, report)
    index.save(out)
    shutil.copytree(config.model, out / EMBEDDER, ignore=shutil.ignore_patterns(MANIFEST, "adapter"))
    summary: Summary = {"chunks": len(index), "chunk": config.chunk}
    (out / "README.md").write_text(_readme(config, summary), encoding="utf-8")
    return summary


def forecast(config: IndexConfig) -> Forecast:
    """Cost by the size of the corpus (measured: 34,226 poems, 7.2 MB of Parquet, took 144 s on one shared core with a
    model of 1.6 million parameters)."""
    path = config.corpus / "train.parquet"
    megabytes = path.stat().st_size / 1e6 if path.is_file() else 10.0
    return Forecast(
        seconds=5 + 20 * megabytes,
        memory_bytes=int((600 + 100 * megabytes) * 1e6),
        disk_bytes=int(25 * megabytes * 1e6),
    )


def _build(config: IndexConfig, report: Reporter) -> "ChunkIndex":
    import numpy as np

    from wenfang.core.corpus import read_texts
    from wenfang.data.chunks import ChunkIndex, cut, document_key, padded
    from wenfang.model import load_model
    from wenfang.tokenizer import Tokenizer

    tokenizer, chunks, keys, last = Tokenizer.load(config.model), list[list[int]](), list[int](), list[bool]()
    for texts in read_texts(config.corpus / "train.parquet", report, say(zh="切成區塊", en="cutting chunks")):
        for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
            pieces = list(cut([tokenizer.bos_id, *ids, tokenizer.end_id], config.chunk))
            chunks += pieces
            keys += [document_key(text)] * len(pieces)
            last += [False] * (len(pieces) - 1) + [True]
    ids_CM = padded(chunks, config.chunk)
    model = load_model(config.model).eval()
    return ChunkIndex.build(ids_CM, np.array(keys), np.array(last), model, config.search, report)


def _readme(config: IndexConfig, summary: Summary) -> str:
    return f"""# Index of chunks 區塊索引

{summary["chunks"]:,} chunks of {config.chunk} tokens from the training side of a corpus, made by `data.index` with
search={config.search}.

| file | what |
|---|---|
| `chunks.safetensors` | `ids` [chunks, {config.chunk}], −1: no token; `keys`: its document; `last`: ends it |
| `vectors.faiss` | the unit vectors in faiss's own format, inner product |
| `embedder/` | the model whose mean final state over a chunk is its vector, with its tokenizer |
"""
