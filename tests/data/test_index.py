"""The index of chunks, judged by plain products in numpy; neighbours of the same document; what it refuses."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from wenfang.core.errors import DataError, InputError
from wenfang.core.report import Reporter
from wenfang.data import index
from wenfang.data.chunks import ChunkIndex, check_tokenizer, document_key, embed, padded
from wenfang.data.index import IndexConfig
from wenfang.model import Decoder, DecoderConfig, save_model
from wenfang.model.memory import Memory
from wenfang.tokenizer import Tokenizer

M = 6


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    tokenizer, folder = Tokenizer.load(tokenizer_folder), tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    model = Decoder(
        DecoderConfig(
            vocab_size=tokenizer.vocab_size, dim=32, layers=1, heads=2, kv_heads=1, head_dim=16, hidden=32, context=64
        )
    )
    save_model(model, folder, tokenizer=tokenizer_folder, bos_id=tokenizer.bos_id, end_id=tokenizer.end_id, card="")
    return folder


@pytest.fixture(scope="module")
def index_folder(tmp_path_factory: pytest.TempPathFactory, corpus_folder: Path, model_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("index")
    summary = index.run(IndexConfig(corpus=corpus_folder, model=model_folder, chunk=M), folder, Reporter())
    assert summary["chunks"] > 40
    return folder


def test_it_finds_what_plain_products_find(index_folder: Path) -> None:
    found = ChunkIndex.load(index_folder)
    ids, keys = found._ids_CM, found._keys_C
    raw = embed(found._embedder, ids, Reporter()).astype(np.float64)
    vectors = raw - raw.mean(0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    likeness = vectors @ vectors.T
    likeness[keys[:, None] == keys[None]] = -np.inf  # Not of the same document.
    expected = np.sort(likeness, 1)[:, ::-1][:, :3]
    numbers = found.find(ids, keys, 3, Reporter())
    np.testing.assert_allclose(np.take_along_axis(likeness, numbers, 1), expected, rtol=0, atol=1e-5)


def test_a_chunk_it_does_not_hold_finds_the_one_most_like_it(index_folder: Path) -> None:
    found = ChunkIndex.load(index_folder)
    query = found._ids_CM[10:11].copy()
    query[0, -1] = query[0, 0]
    assert found.find(query, np.array([-1]), 1, Reporter()) == 10


def test_a_vector_is_the_mean_of_the_last_states_whatever_is_computed_beside_it(index_folder: Path) -> None:
    model = ChunkIndex.load(index_folder)._embedder
    chunks = [[5, 9, 30, 8], [7], []]
    vectors = embed(model, padded(chunks, 6), Reporter())
    for chunk, vector in zip(chunks[:2], vectors, strict=False):
        with torch.no_grad():
            states = model.hidden(torch.tensor([chunk]), torch.arange(len(chunk))[None], Memory(), torch.float32)
        mean = states[0].mean(0)
        np.testing.assert_allclose(vector, (mean / mean.norm()).numpy(), rtol=0, atol=1e-6)
    assert not vectors[2].any()


def test_neighbours_are_never_of_the_same_document_and_run_out_rather_than_repeat() -> None:
    """A document so long that it fills every result, and fewer strangers than are asked for."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 50, (60, 4)).astype(np.int32)
    keys, last = np.array([1] * 57 + [2, 2, 3]), np.zeros(60, bool)
    last[[56, 58, 59]] = True
    model = Decoder(DecoderConfig(vocab_size=50, dim=16, layers=1, heads=1, kv_heads=1, head_dim=16, hidden=16))
    for search in ("exact", "hnsw"):
        found = ChunkIndex.build(ids, keys, last, model, search, Reporter())
        numbers = found.find(ids, keys, 4, Reporter())
        assert {tuple(sorted(row)) for row in numbers[:57].tolist()} == {(-1, 57, 58, 59)}
        assert numbers[:57, -1].tolist() == [-1] * 57
        assert (numbers[57:59] != 57).all()
        assert (numbers[57:59] != 58).all()
        assert (numbers[57:] >= 0).all()
    tokens = found.tokens(np.array([[3, 56], [58, -1]]))
    assert tokens[0, 0].tolist() == [*ids[3], *ids[4]]
    assert tokens[0, 1].tolist() == [*ids[56], -1, -1, -1, -1]
    assert tokens[1, 0].tolist() == [*ids[58], -1, -1, -1, -1]
    assert tokens[1, 1].tolist() == [-1] * 8


def test_the_graph_finds_nearly_what_comparing_with_all_finds() -> None:
    rng = np.random.default_rng(1)
    ids, keys, last = rng.integers(0, 200, (2000, 4)).astype(np.int32), np.arange(2000), np.ones(2000, bool)
    model = Decoder(DecoderConfig(vocab_size=200, dim=16, layers=1, heads=1, kv_heads=1, head_dim=16, hidden=16))
    exact, graph = (
        ChunkIndex.build(ids, keys, last, model, search, Reporter()).find(ids, keys, 5, Reporter())
        for search in ("exact", "hnsw")
    )
    assert np.mean([len({*a} & {*b}) / 5 for a, b in zip(exact.tolist(), graph.tolist(), strict=True)]) > 0.95


def test_what_was_written_is_whole_or_refused(
    index_folder: Path, tokenizer_folder: Path, model_folder: Path, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.load(tokenizer_folder)
    check_tokenizer(index_folder, tokenizer)
    tokenizer._rust.add_tokens(["新的詞"])
    with pytest.raises(DataError, match="another tokenizer"):
        check_tokenizer(index_folder, tokenizer)
    for number, (name, damage) in enumerate(
        [("vectors.faiss", b"IxF"), ("chunks.safetensors", b"x" * 20), ("vectors.faiss", None)]
    ):
        folder = shutil.copytree(index_folder, tmp_path / str(number))
        if damage is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(damage)
        with pytest.raises(DataError, match=r"cannot be used: .* Make it again with data.index"):
            ChunkIndex.load(folder)
    with pytest.raises(InputError, match="No folder"):
        ChunkIndex.load(tmp_path / "none")


def test_the_key_is_of_the_text_alone() -> None:
    assert document_key("春") == document_key("春") != document_key("秋")
    assert 0 <= document_key("") < 2**63


def test_without_the_library_it_says_what_to_install(index_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match=r"pip install 'wenfang\[retrieval\]'"):
        ChunkIndex.load(index_folder)
