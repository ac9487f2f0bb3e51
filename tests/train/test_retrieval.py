"""Training with neighbours: the right ones at the right places, what they are worth, and the stage."""

from pathlib import Path

import numpy as np
import pytest
import torch

from wenfang.core.errors import DataError, InputError
from wenfang.core.report import Reporter
from wenfang.data import index as index_stage
from wenfang.data.chunks import ChunkIndex
from wenfang.data.index import IndexConfig
from wenfang.model import Decoder, DecoderConfig, load_model
from wenfang.model.memory import Memory
from wenfang.model.parts import RetroConfig
from wenfang.train import pretrain
from wenfang.train.config import OptimizerConfig, PretrainConfig, TrainConfig
from wenfang.train.loop import mean_loss, train
from wenfang.train.loss import cross_entropy_sum
from wenfang.train.objective import NextToken, Rows, Task
from wenfang.train.packing import Document
from wenfang.train.retrieval import Pieces, RetrievedRows, look_up, with_retrieval

M, VOCABULARY, CONTEXT = 4, 60, 16
RETRO = RetroConfig(chunk=M, neighbours=1, layers=(1,))
SHAPE = {"vocab_size": VOCABULARY, "dim": 32, "layers": 2, "heads": 2, "kv_heads": 2, "head_dim": 16, "hidden": 48}


def secrets(number: int) -> list[Document]:
    """Documents of a question and an answer, four random tokens each, and a last token; each twice, in a row."""
    rng = np.random.default_rng(0)
    texts = [[*rng.integers(1, VOCABULARY, 2 * M).tolist(), 0] for _ in range(number)]
    return [(ids, [False] * (M + 1) + [True] * M) for text in texts for ids in (text, text)]


def index_of(documents: list[Document]) -> ChunkIndex:
    chunks = [ids[start : start + M] for ids, _ in documents for start in (0, M)]
    torch.manual_seed(0)
    embedder = Decoder(DecoderConfig(**SHAPE))
    keys = np.repeat(np.arange(len(documents)), 2)
    return ChunkIndex.build(np.array(chunks, np.int32), keys, np.tile([False, True], len(documents)), embedder,
                            "exact", Reporter())  # fmt: skip


def rows_of(documents: list[Document], index: ChunkIndex, first: int) -> RetrievedRows:
    keys = list(range(first, first + len(documents)))
    return look_up(Pieces(documents, keys, 1.0), CONTEXT, index, RETRO.neighbours, Reporter())


def test_each_chunk_of_each_packed_document_has_its_own_neighbours() -> None:
    documents = secrets(10)
    rows = rows_of(documents, index_of(documents), 0)
    batch = rows.batch(np.arange(len(rows)))
    ids, found = batch.tensors["ids_BT"], batch.tensors["neighbours_BSNR"]
    seen = 0
    for row in range(len(rows)):
        ends = (batch.tensors["positions_BT"][row] % M == M - 1) & (batch.tensors["documents_BT"][row] >= 0)
        for number, end in enumerate(ends.nonzero()[:, 0].tolist()):
            # Every text is there twice: the neighbour of a chunk is the same chunk of the other copy.
            assert found[row, number, 0, :M].tolist() == ids[row, end - M + 1 : end + 1].tolist()
            seen += 1
        assert (found[row, int(ends.sum()) :] == -1).all()
    assert seen == 2 * len(documents)
    keys_C = rows.index._keys_C
    assert len(set(keys_C[rows.found_NSK[rows.found_NSK >= 0]])) == len(documents)  # All, so none its own.


def test_the_loss_of_packed_rows_is_that_of_each_document_with_its_neighbours() -> None:
    documents = secrets(3)
    rows = rows_of(documents, index_of(documents), 0)
    torch.manual_seed(1)
    model = Decoder(DecoderConfig(**SHAPE, retro=RETRO))
    tensors = rows.batch(np.arange(len(rows))).tensors
    together = NextToken(torch.float32)(model, **tensors).total
    alone = torch.zeros(())
    for number, (ids, _) in enumerate(documents):
        memory, other = Memory(), documents[number ^ 1][0]
        memory.neighbours_BSNR = torch.tensor([[[other[: 2 * M]], [[*other[M : 2 * M], -1, -1, -1, -1]]]])
        logits = model(torch.tensor([ids[:-1]]), torch.arange(2 * M)[None], memory)[0, M:]
        alone = alone + torch.nn.functional.cross_entropy(logits, torch.tensor(ids[M + 1 :]), reduction="sum")
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    del tensors["neighbours_BSNR"]
    assert abs(cross_entropy_sum(model, *tensors.values(), torch.float32) - together) > 0.01


def test_what_stands_in_a_neighbour_is_learned_to_be_read(tmp_path: Path) -> None:
    """Answers are random, so that nobody can know those of new documents without reading."""
    documents = secrets(800)
    index = index_of(documents)
    training, validation = rows_of(documents[:1500], index, 0), rows_of(documents[1500:], index, 1500)
    torch.manual_seed(2)
    model = Decoder(DecoderConfig(**SHAPE, context=CONTEXT, retro=RETRO))
    model.initialise()
    objective = NextToken(torch.float32)
    config = TrainConfig(steps=150, batch=32, context=CONTEXT, compile=False, dtype="float32", validate_every=150,
                         optimizer=OptimizerConfig(lr=0.01))  # fmt: skip
    train(model, Task(training, validation, objective, measure=objective), config, tmp_path, Reporter(), label="")
    with torch.no_grad():
        reading = mean_loss(objective, model, validation, 10)
        blind = mean_loss(objective, model, Rows(validation.packed, 1.0), 10)
    assert reading < 0.3 * np.log(VOCABULARY)
    assert blind > 0.75 * np.log(VOCABULARY)  # One of the four to be learned is the last token, the same everywhere.


def test_layers_that_read_are_added_without_changing_what_the_model_says() -> None:
    plain = Decoder(DecoderConfig(**SHAPE))
    ids = torch.randint(0, VOCABULARY, (1, 12))
    positions = torch.arange(12)[None]
    with torch.no_grad():
        expected = plain(ids, positions, Memory())
        richer, memory = with_retrieval(plain, RETRO), Memory()
        memory.neighbours_BSNR = torch.randint(0, VOCABULARY, (1, 3, 1, 2 * M))
        torch.testing.assert_close(richer(ids, positions, memory), expected)
    assert with_retrieval(richer, RETRO) is richer
    with pytest.raises(InputError, match=r"retrieval asks for .*chunk=9"):
        with_retrieval(richer, RetroConfig(chunk=9))
    with pytest.raises(InputError, match="the model has 2 layers"):
        with_retrieval(plain, RetroConfig(layers=(2,)))


def test_the_stage_from_plain_model_to_reader(corpus_folder: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    tiny = {"dim": 16, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 8, "hidden": 24}
    common = {"corpus": corpus_folder, "batch": 4, "context": 32, "compile": False, "dtype": "float32", "steps": 4}
    for name in ("plain", "index", "fresh", "richer", "again"):
        (tmp_path / name).mkdir()
    pretrain.run(PretrainConfig(**common, **tiny, tokenizer=tokenizer_folder), tmp_path / "plain", Reporter())
    index_stage.run(
        IndexConfig(corpus=corpus_folder, model=tmp_path / "plain", chunk=8), tmp_path / "index", Reporter()
    )
    index = {"index": tmp_path / "index", "retrieval": {"neighbours": 3}}
    summaries = {
        "fresh": pretrain.run(
            PretrainConfig(**common, **tiny, **index, tokenizer=tokenizer_folder), tmp_path / "fresh", Reporter()
        ),
        "richer": pretrain.run(
            PretrainConfig(**common, **index, model=tmp_path / "plain"), tmp_path / "richer", Reporter()
        ),
    }
    for name, summary in summaries.items():
        assert {"bits_per_character", "bits_per_character_without_neighbours"} <= summary.keys()
        model = load_model(tmp_path / name)
        assert model.layers[1].cross.attention.o_proj.weight.any()
        assert model.config.retro == RetroConfig(chunk=8, neighbours=3)
        assert model.config.qk_norm == "head"
    # A reader may be trained further, without neighbours too.
    pretrain.run(PretrainConfig(**common, model=tmp_path / "richer"), tmp_path / "again", Reporter())
    assert load_model(tmp_path / "again").config.retro == RetroConfig(chunk=8, neighbours=3)
    other = tmp_path / "index" / "embedder" / "tokenizer.json"
    other.write_text(other.read_text(encoding="utf-8").replace('"白', '"黑白黑'), encoding="utf-8")
    with pytest.raises(DataError):
        pretrain.run(PretrainConfig(**common, **index, model=tmp_path / "plain"), tmp_path / "again", Reporter())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"retrieval": {"neighbours": 1}}, "retrieval needs index"),
        ({"index": Path("i"), "model": Path("m"), "replay": Path("r")}, "index and replay exclude"),
    ],
)
def test_options_without_sense_are_refused(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        PretrainConfig(**{"corpus": Path("c"), "tokenizer": Path("t"), "steps": 1, **changes})
