"""The architecture lab: fair, resumable, and right about lengths and bytes."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from wenfang.core.errors import InputError
from wenfang.core.report import Reporter
from wenfang.data import index as index_stage
from wenfang.data.index import IndexConfig
from wenfang.model import Decoder, DecoderConfig
from wenfang.model.families import family_for
from wenfang.model.folder import stored_tensors
from wenfang.model.memory import Memory
from wenfang.model.parts import MoeConfig
from wenfang.train import pretrain
from wenfang.train.compare import stage
from wenfang.train.compare.config import CompareConfig
from wenfang.train.compare.measure import bits_per_byte, longer
from wenfang.train.config import PretrainConfig

SHAPE = {"dim": 32, "layers": 1, "heads": 2, "kv_heads": 2, "head_dim": 16, "hidden": 64}
SMALL = DecoderConfig(vocab_size=97, context=16, **SHAPE)


def random_decoder(config: DecoderConfig) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2:  # Those of experts are stacked.
                weight.normal_(0.0, 2 * weight.shape[-1] ** -0.5)
    return model


@pytest.fixture
def config(corpus_folder: Path, tokenizer_folder: Path) -> CompareConfig:
    return CompareConfig(
        corpus=corpus_folder, tokenizer=tokenizer_folder, steps=4, batch=4, context=16, validate_every=2,
        extrapolate=2, decode_tokens=2, dtype="float32", base=SHAPE,
        variants={"mha": {}, "again": {}, "alibi": {"ropes": None, "alibi": True}},
    )  # fmt: skip


def test_equal_variants_do_equally_well_and_what_is_done_is_not_done_again(
    config: CompareConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(stage, "draw", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            stage.run(config, tmp_path, Reporter())
    monkeypatch.setattr(stage, "_study", None)  # Every result is there: nothing is trained a second time.
    summary = stage.run(config, tmp_path, Reporter())
    assert summary["mha"] == summary["again"] != summary["alibi"]
    mha, again, alibi = json.loads((tmp_path / "comparison.json").read_bytes())
    curve = [point["bits_per_byte"] for point in mha["curve"]]
    assert curve == [point["bits_per_byte"] for point in again["curve"]]
    assert len(curve) == 2
    assert curve[-1] == mha["bits_per_byte"]
    assert [point["tokens"] for point in mha["curve"]] == [2 * 4 * 16, 4 * 4 * 16]
    assert mha["lengths"] == again["lengths"]
    assert set(mha["lengths"]) == {"1×", "2×", "2× YaRN"}
    assert set(alibi["lengths"]) == {"1×", "2×"}
    assert (tmp_path / "curves.svg").read_text().count("alibi") == 3
    assert "| mha |" in (tmp_path / "README.md").read_text()


@torch.no_grad()
def test_bits_per_byte_are_those_of_transformers_in_the_second_half_of_each_row() -> None:
    model, ids = random_decoder(SMALL), torch.randint(0, 97, (3 * 16 + 1,))
    family = family_for(SMALL)
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(family.model_type, **family.to_hf(SMALL))).eval()
    theirs.load_state_dict(stored_tensors(model, family))
    log_NTV = theirs(ids[:48].view(3, 16)).logits.log_softmax(-1)
    picked_NT = log_NTV.gather(-1, ids[1:].view(3, 16, 1))[..., 0]
    expected = -float(picked_NT[:, 8:].mean()) / math.log(2) / 2.5
    assert bits_per_byte(model, ids, 16, 2.5, torch.float32) == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_longer_contexts_keep_the_weights_and_yarn_changes_the_angles_alone() -> None:
    moe = MoeConfig(experts=4, active=2, hidden=24, balance="bias")
    model = random_decoder(SMALL.model_copy(update={"moe": moe}))
    ids, positions = torch.randint(0, 97, (1, 32)), torch.arange(32)[None]
    logits = model(ids, positions, Memory())
    plain, scaled = longer(model, 32, yarn=False), longer(model, 32, yarn=True)
    assert plain is not None
    assert scaled is not None
    assert torch.equal(plain(ids, positions, Memory()), logits)
    assert not torch.allclose(scaled(ids, positions, Memory()), logits, atol=1e-3)
    scaling = scaled.config.ropes[0].scaling
    assert (scaling.factor, scaling.original_context) == (2.0, 16)
    assert longer(Decoder(SMALL.model_copy(update={"absolute_positions": "learned"})), 32, yarn=False) is None
    assert longer(Decoder(SMALL.model_copy(update={"ropes": (None,)})), 32, yarn=True) is None


def test_variants_with_retrieval_read_the_rows_that_the_others_read(
    config: CompareConfig, corpus_folder: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    for name in ("plain", "index", "out"):
        (tmp_path / name).mkdir()
    common = {"corpus": corpus_folder, "steps": 2, "batch": 4, "context": 32, "compile": False, "dtype": "float32"}
    pretrain.run(PretrainConfig(**common, **SHAPE, tokenizer=tokenizer_folder), tmp_path / "plain", Reporter())
    index = IndexConfig(corpus=corpus_folder, model=tmp_path / "plain", chunk=8)
    index_stage.run(index, tmp_path / "index", Reporter())
    retro = {"chunk": 8, "neighbours": 2, "layers": (0,)}
    lab = {"tokenizer": tokenizer_folder, "index": tmp_path / "index", "decode_tokens": 2, "base": SHAPE}
    lab |= {"variants": {"plain": {}, "one": {"retro": retro | {"neighbours": 1}}, "two": {"retro": retro}}}
    config = CompareConfig(**common, **lab)
    stage.run(config, tmp_path / "out", Reporter())
    plain, one, two = json.loads((tmp_path / "out" / "comparison.json").read_bytes())
    # Fresh readers change nothing; two steps later they have learned something.
    assert len({result["bits_per_byte"] for result in (plain, one, two)}) == 3
    assert [point["tokens"] for point in plain["curve"]] == [point["tokens"] for point in two["curve"]]
    # The encoder reads 2 · neighbours tokens for each of the text's.
    weights = DecoderConfig(vocab_size=97, **SHAPE, retro=retro).matmul_parameters
    weights -= DecoderConfig(vocab_size=97, **SHAPE, retro=retro | {"neighbours": 1}).matmul_parameters
    assert two["flops_per_token"] - one["flops_per_token"] == pytest.approx(6 * weights, rel=0.1)
    wrong = config.model_copy(update={"variants": {"odd": {"retro": retro | {"chunk": 4}}}})
    with pytest.raises(InputError, match=r"variants\.odd: retro\.chunk=4"):
        stage.run(wrong, tmp_path / "out", Reporter())
    for changes, match in (({"index": None}, "need index"), ({"extrapolate": 2}, "exclude each other")):
        with pytest.raises(ValueError, match=match):
            CompareConfig(**config.model_dump() | changes)


def test_a_variant_that_is_no_decoder_is_refused_by_name_and_field(config: CompareConfig, tmp_path: Path) -> None:
    for fields, match in (({"width": 3}, "variants.odd.*width"), ({"kv_heads": 3}, "variants.odd.*kv_heads")):
        with pytest.raises(InputError, match=match):
            stage.run(config.model_copy(update={"variants": {"odd": fields}}), tmp_path, Reporter())
    with pytest.raises(ValueError, match="vocab_size"):
        CompareConfig(**config.model_dump() | {"base": {"vocab_size": 5}})
    with pytest.raises(ValueError, match="folder"):
        CompareConfig(**config.model_dump() | {"variants": {"../up": {}}})
