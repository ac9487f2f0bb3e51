"""Continued pretraining: replay, another vocabulary, and what is forgotten."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from wenfang.cli import main
from wenfang.core.errors import InputError
from wenfang.core.report import Reporter
from wenfang.model import load_model
from wenfang.tokenizer import Tokenizer
from wenfang.tokenizer.train import TokenizerConfig
from wenfang.tokenizer.train import run as train_tokenizer
from wenfang.train import pretrain
from wenfang.train.config import OptimizerConfig, PretrainConfig
from wenfang.train.objective import Rows
from wenfang.train.packing import pack
from wenfang.train.pretrain import mix
from wenfang.train.vocabulary import adopt_vocabulary

SHAPE = {"dim": 32, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 16, "hidden": 48}
PLAIN = {"batch": 4, "context": 64, "compile": False, "dtype": "float32"}


@pytest.fixture(scope="module")
def start(corpus_folder: Path, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("start")
    config = PretrainConfig(corpus=corpus_folder, tokenizer=tokenizer_folder, steps=60, **PLAIN, **SHAPE)
    pretrain.run(config, out, Reporter())
    return out


@pytest.fixture(scope="module")
def prose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of another kind: the same few English sentences."""
    folder = tmp_path_factory.mktemp("prose")
    texts = [
        f"the {animal} sat on the mat and looked at the {other}" for animal in ("cat", "dog") for other in "abcdef"
    ]
    for split in ("train", "validation"):
        pq.write_table(pa.table({"text": texts}), folder / f"{split}.parquet")
    return folder


def test_it_goes_on_from_what_the_model_knows(start: Path, corpus_folder: Path, tmp_path: Path) -> None:
    barely = OptimizerConfig(lr=1e-9)
    summary = pretrain.run(
        PretrainConfig(corpus=corpus_folder, model=start, steps=1, optimizer=barely, **PLAIN), tmp_path, Reporter()
    )
    before, after = load_model(start).state_dict(), load_model(tmp_path).state_dict()
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    assert summary["corpus_bits_per_character_before"] == summary["corpus_bits_per_character_after"]


def test_the_command_continues_too(start: Path, corpus_folder: Path, tmp_path: Path) -> None:
    words = f"--corpus {corpus_folder} --model {start} --steps 1 --batch 2 --context 64 --no-compile".split()
    assert main(["train", "pretrain", *words, "--out", str(tmp_path / "out")]) == 0
    assert load_model(tmp_path / "out").config == load_model(start).config


def test_replay_forgets_less_and_the_report_says_so(
    start: Path, prose: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    forgotten = []
    for share in (0.02, 0.7):
        out = tmp_path / str(share)
        out.mkdir()
        config = PretrainConfig(corpus=prose, model=start, replay=corpus_folder, replay_share=share, steps=40, **PLAIN)
        summary = pretrain.run(config, out, Reporter())
        assert summary["corpus_bits_per_character_after"] < summary["corpus_bits_per_character_before"]
        forgotten.append(summary["replay_bits_per_character_after"] - summary["replay_bits_per_character_before"])
    assert forgotten[1] < forgotten[0]


@pytest.mark.parametrize(("share", "wanted"), [(0.5, 6), (0.1, 1), (0.9, 54)])
def test_the_mixture_has_the_share_asked_for(share: float, wanted: int) -> None:
    new, old = (
        Rows(pack([([first] * 9, [True] * 9) for _ in range(n)], 8), characters)
        for first, n, characters in ((1, 6, 1.0), (2, 4, 3.0))
    )
    mixed = mix(new, old, share=share, seed=0)
    firsts = mixed.batch(np.arange(len(mixed))).tensors["ids_BT"][:, 0]
    assert (firsts == 1).sum() == 6
    assert (firsts == 2).sum() == wanted
    assert mixed.characters_per_token == pytest.approx((6 + 3 * wanted) / (6 + wanted))


def test_replay_is_drawn_without_repetition_first() -> None:
    rows = [Rows(pack([([n] * 9, [True] * 9) for n in range(start, start + 5)], 8), 1.0) for start in (0, 10)]
    mixed = mix(*rows, share=0.6, seed=0)
    drawn = mixed.batch(np.arange(5, len(mixed))).tensors["ids_BT"][:, 0]
    assert sorted(np.bincount(drawn)[10:]) == [1, 1, 2, 2, 2]


def test_a_batch_of_the_mixture_keeps_the_order_of_its_rows() -> None:
    rows = [Rows(pack([([n] * 9, [True] * 9) for n in range(start, start + 5)], 8), 1.0) for start in (0, 10)]
    mixed = mix(*rows, share=0.5, seed=0)
    whole = mixed.batch(np.arange(10)).tensors["ids_BT"][:, 0]
    assert sorted(whole.tolist()) == [*range(5), *range(10, 15)]
    chosen = np.array([7, 1, 9, 0, 3])
    batch = mixed.batch(chosen)
    assert batch.tensors["ids_BT"][:, 0].tolist() == whole[chosen].tolist()
    assert batch.count == batch.tokens == 40


def test_new_tokens_begin_as_the_mean_of_their_pieces(start: Path, prose: Path, tmp_path: Path) -> None:
    train_tokenizer(TokenizerConfig(corpus=prose, vocab_size=320, character_coverage=1.0), tmp_path, Reporter())
    known, wanted, model = Tokenizer.load(start), Tokenizer.load(tmp_path), load_model(start)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    added = adopt_vocabulary(model, known, wanted)
    assert {wanted.tokens[id_] for id_ in added} == set(wanted.tokens) - set(known.tokens) != set()
    assert model.config.vocab_size == wanted.vocab_size == len(model.embed_tokens.weight) == len(model.lm_head.weight)
    for token in ("the", "<|end|>"):
        id_ = wanted.tokens.index(token)
        pieces = [known.tokens.index(token)] if token in known.tokens else known.encode(token)
        for table in ("embed_tokens.weight", "lm_head.weight"):
            torch.testing.assert_close(model.state_dict()[table][id_], before[table][pieces].mean(0))
    assert len(known.encode("the")) > 1


def test_a_new_vocabulary_is_trained_and_saved(start: Path, prose: Path, tmp_path: Path) -> None:
    vocabulary, out = tmp_path / "tokenizer", tmp_path / "out"
    vocabulary.mkdir()
    out.mkdir()
    train_tokenizer(TokenizerConfig(corpus=prose, vocab_size=320, character_coverage=1.0), vocabulary, Reporter())
    config = PretrainConfig(corpus=prose, model=start, tokenizer=vocabulary, steps=20, **PLAIN)
    summary = pretrain.run(config, out, Reporter())
    assert summary["new_tokens"] > 0
    assert summary["corpus_bits_per_character_after"] < summary["corpus_bits_per_character_before"]
    assert Tokenizer.load(out).tokens == Tokenizer.load(vocabulary).tokens
    assert load_model(out).config.vocab_size == Tokenizer.load(vocabulary).vocab_size


@pytest.fixture(scope="module")
def english(prose: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that knows the other corpus."""
    out = tmp_path_factory.mktemp("english")
    train_tokenizer(TokenizerConfig(corpus=prose, vocab_size=320, character_coverage=1.0), out, Reporter())
    return out


def test_new_rows_that_learn_alone_beat_means_and_move_nothing_else(
    start: Path, prose: Path, english: Path, tmp_path: Path
) -> None:
    rate = OptimizerConfig(lr=0.02)
    config = PretrainConfig(
        corpus=prose, model=start, tokenizer=english, steps=20, new_token_steps=20, optimizer=rate, **PLAIN
    )
    summary = pretrain.run(config, tmp_path, Reporter())
    means = float(summary["corpus_bits_per_character_with_new_tokens"])
    assert float(summary["corpus_bits_per_character_after"]) < 0.8 * means
    expected = load_model(start)
    added = adopt_vocabulary(expected, Tokenizer.load(start), Tokenizer.load(english))
    kept = [id_ for id_ in range(expected.config.vocab_size) if id_ not in added]
    for (name, weight), (_, learned) in zip(
        expected.named_parameters(), load_model(tmp_path).named_parameters(), strict=True
    ):
        if name in ("embed_tokens.weight", "lm_head.weight"):
            assert not torch.equal(weight[added], learned[added])
            weight, learned = weight[kept], learned[kept]
        assert torch.equal(weight, learned), name


def test_after_their_steps_everything_learns(start: Path, prose: Path, english: Path, tmp_path: Path) -> None:
    config = PretrainConfig(corpus=prose, model=start, tokenizer=english, steps=6, new_token_steps=5, **PLAIN)
    pretrain.run(config, tmp_path, Reporter())
    before, after = load_model(start), load_model(tmp_path)
    assert not torch.equal(before.norm.weight, after.norm.weight)


@pytest.mark.parametrize("share", [float("nan"), -0.1, 0.0, 1.0, float("inf")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValidationError, match="replay_share"):
        PretrainConfig(corpus="a", model="b", replay="c", replay_share=share, steps=1)


def test_what_cannot_be_continued_is_refused(start: Path, corpus_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="give tokenizer for a fresh model"):
        PretrainConfig(corpus="a", steps=1)
    with pytest.raises(ValidationError, match="dim is the model's own"):
        PretrainConfig(corpus="a", model="b", dim=64, steps=1)
    with pytest.raises(ValidationError, match="new_token_steps is for a model that gets another tokenizer"):
        PretrainConfig(corpus="a", model="b", new_token_steps=5, steps=10)
    with pytest.raises(InputError, match="new_token_steps=5 has nothing to do"):
        pretrain.run(
            PretrainConfig(corpus=corpus_folder, model=start, tokenizer=start, new_token_steps=5, steps=9, **PLAIN),
            tmp_path,
            Reporter(),
        )
    with pytest.raises(InputError, match="context=100 exceeds the model's 64"):
        pretrain.run(
            PretrainConfig(corpus=corpus_folder, model=start, steps=1, **(PLAIN | {"context": 100})),
            tmp_path,
            Reporter(),
        )
