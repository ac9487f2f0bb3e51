"""Context extension: what it writes, what it teaches, what it refuses."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from wenfang.core.errors import DataError, InputError
from wenfang.core.report import Reporter
from wenfang.model import DecoderConfig, load_config, load_model
from wenfang.model.memory import Memory
from wenfang.model.parts import LinearScaling, RopeConfig
from wenfang.tokenizer import Tokenizer
from wenfang.train import extend_context, pretrain
from wenfang.train.config import ExtendContextConfig, OptimizerConfig, PretrainConfig
from wenfang.train.extend_context import doublings, extended, long_rows

PLAIN = {"batch": 4, "compile": False, "dtype": "float32"}
SHAPE = {"dim": 32, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 16, "hidden": 48}
SHORT, LONG = 32, 128


@pytest.fixture(scope="module")
def repeating(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus in which the next character follows from the one before, wherever one stands."""
    folder = tmp_path_factory.mktemp("repeating")
    for split in ("train", "validation"):
        pq.write_table(pa.table({"text": ["天地玄黃宇宙洪荒" * 12] * 24}), folder / f"{split}.parquet")
    return folder


@pytest.fixture(scope="module")
def start(repeating: Path, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("start")
    config = PretrainConfig(corpus=repeating, tokenizer=tokenizer_folder, steps=60, context=SHORT, **PLAIN, **SHAPE)
    pretrain.run(config, out, Reporter())
    return out


def test_the_model_reads_further_and_transformers_reads_it_alike(start: Path, repeating: Path, tmp_path: Path) -> None:
    config = ExtendContextConfig(
        corpus=repeating, model=start, context=LONG, steps=30, optimizer=OptimizerConfig(lr=0.004), **PLAIN
    )
    summary = extend_context.run(config, tmp_path, Reporter())
    far = "bits_per_character_at_64_128"
    assert summary[f"{far}_after"] < summary[f"{far}_before"]
    model, theirs = load_model(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)
    assert theirs.config.max_position_embeddings == model.config.context == LONG
    assert theirs.config.rope_parameters["rope_type"] == "yarn"
    assert theirs.config.rope_parameters["factor"] == LONG / SHORT
    ids = torch.randint(0, model.config.vocab_size, (1, LONG), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = model(ids, torch.arange(LONG)[None], Memory())
        torch.testing.assert_close(ours, theirs(ids).logits, rtol=1e-4, atol=1e-4)  # fp32, summed in another order.


def test_rows_are_full_and_hold_one_stream(repeating: Path, tokenizer_folder: Path) -> None:
    tokenizer = Tokenizer.load(tokenizer_folder)
    packed = long_rows(repeating / "train.parquet", tokenizer, LONG, Reporter()).packed
    text = [tokenizer.bos_id, *tokenizer.encode("天地玄黃宇宙洪荒" * 12), tokenizer.end_id]
    stream = torch.tensor(text * 24)
    assert len(packed) == (len(stream) - 1) // LONG
    assert packed.waste == 0
    assert (packed.positions_NT == range(LONG)).all()
    for row in range(len(packed)):
        assert packed.ids_NT[row].tolist() == stream[row * LONG : (row + 1) * LONG].tolist()


def test_the_ranges_double_from_the_known_context() -> None:
    assert doublings(32, 128) == [0, 16, 32, 64, 128]
    assert doublings(32, 100) == [0, 16, 32, 64, 100]


def test_a_second_extension_counts_from_the_first_context(start: Path) -> None:
    twice = extended(extended(load_config(start), 64), 128)
    assert twice == extended(load_config(start), 128)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (DecoderConfig(vocab_size=9, context=256), "context=128 is not longer than the model's 256"),
        (DecoderConfig(vocab_size=9, context=64, ropes=(None,), alibi=True), "not rotary"),
        (
            DecoderConfig(vocab_size=9, context=64, ropes=(RopeConfig(scaling=LinearScaling(factor=2)),)),
            "scaled by 'linear' already",
        ),
    ],
)
def test_what_cannot_be_extended_is_refused(shape: DecoderConfig, said: str) -> None:
    with pytest.raises(InputError, match=said):
        extended(shape, 128)


def test_a_corpus_shorter_than_a_row_is_refused(repeating: Path, tokenizer_folder: Path) -> None:
    with pytest.raises(DataError, match=r"tokens, less than one row of context=100000"):
        long_rows(repeating / "train.parquet", Tokenizer.load(tokenizer_folder), 100_000, Reporter())
