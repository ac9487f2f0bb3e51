"""Every family that llama.cpp knows, written as GGUF and run by llama.cpp itself on random weights."""

from pathlib import Path

import pytest
import torch
from judge_llama_cpp import llama_cpp
from test_folder import write
from test_gguf_llama_cpp import logprobs

from wenfang.core.errors import ModelError
from wenfang.model import DecoderConfig, load_model
from wenfang.model.gguf import export_gguf
from wenfang.model.mixers.config import Mamba2Config
from wenfang.model.parts import MoeConfig, RopeConfig

BASE = {
    "vocab_size": 700,
    "dim": 32,
    "layers": 3,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 8,
    "hidden": 48,
    "context": 40,
}
LAYER_NORM = {
    **BASE, "kv_heads": 4, "hidden": 128, "ropes": (None,), "qk_norm": None, "norm": "layer", "gated": False,
    "norm_eps": 1e-5,
}  # fmt: skip
BIASES = {"norm_bias": True, "qkv_bias": True, "o_bias": True, "mlp_bias": True}
MOE = MoeConfig(experts=5, active=2, hidden=24, balance="loss")
FAMILIES = {
    "mistral": {**BASE, "family": "mistral", "qk_norm": None, "head_dim": 16},
    "mixtral": {**BASE, "family": "mixtral", "qk_norm": None, "hidden": 24, "moe": MOE},
    "qwen3_moe": {**BASE, "family": "qwen3_moe", "moe": MOE},
    "smollm3": {
        **BASE, "family": "smollm3", "layers": 5, "qk_norm": None, "tie_embeddings": True,
        "ropes": (*[RopeConfig(theta=5e5)] * 3, None),
    },
    "olmo2": {**BASE, "family": "olmo2", "qk_norm": "projection", "norm_placement": "post"},
    "phi3": {**BASE, "family": "phi3", "qk_norm": None},
    "gemma2": {
        **BASE, "family": "gemma2", "layers": 4, "head_dim": 16, "kv_heads": 1, "qk_norm": None, "windows": (8, None),
        "norm_offset": True, "norm_placement": "sandwich", "activation": "gelu_tanh", "embedding_scale": 32**0.5,
        "attention_scale": 0.25, "attention_softcap": 3.0, "logit_softcap": 5.0, "tie_embeddings": True,
    },
    "gpt2": {
        **LAYER_NORM, **BIASES, "family": "gpt2", "hidden": 56, "absolute_positions": "learned",
        "activation": "gelu_tanh", "tie_embeddings": True,
    },
    "bloom": {
        **LAYER_NORM, **BIASES, "family": "bloom", "alibi": True, "embedding_norm": True, "activation": "gelu_tanh",
        "tie_embeddings": True,
    },
    "mpt": {
        **LAYER_NORM, "family": "mpt", "heads": 4, "alibi": True, "activation": "gelu", "qkv_clip": 1.5,
        "tie_embeddings": True,
    },
    "mamba2": {
        **BASE, "family": "mamba2", "mixers": "mamba2", "ropes": (None,), "hidden": 0,
        "mamba2": Mamba2Config(heads=8, head_dim=8, state_dim=16, groups=2, chunk=8),
    },
}  # fmt: skip


REFUSED = {
    "mistral": ({"windows": (8,)}, "llama cannot express this model's windows"),
    "mixtral": ({"windows": (8,)}, "llama cannot express this model's windows"),
    "qwen3_moe": ({"moe": MOE.model_copy(update={"normalise": False})}, "qwen3moe cannot express this model's moe"),
    "smollm3": ({"ropes": (RopeConfig(), None)}, "smollm3 cannot express this model's ropes"),
    "olmo2": ({"head_dim": 6}, "olmo2 cannot express this model's head_dim"),
    "phi3": ({"ropes": (RopeConfig(fraction=0.5),)}, "phi3 cannot express this model's ropes"),
    "gemma2": ({"attention_scale": 0.5}, "gemma2 cannot express this model's attention_scale"),
    "mpt": ({"attention_scale": 0.5}, "mpt cannot express this model's attention_scale"),
    "mamba2": (
        {"mamba2": Mamba2Config(heads=8, head_dim=8, conv_bias=False)}, "mamba2 cannot express this model's mamba2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_architecture_has_no_key_for_is_refused_by_field(
    name: str, tmp_path: Path, tokenizer_folder: Path
) -> None:
    changes, told = REFUSED[name]
    write(DecoderConfig(**FAMILIES[name] | changes), tmp_path, tokenizer_folder)
    with pytest.raises(ModelError, match=told):
        export_gguf(tmp_path, tmp_path / "model.gguf", dtype="f32")


@pytest.mark.parametrize("name", FAMILIES)
def test_llama_cpp_runs_the_family_as_we_do(name: str, tmp_path: Path, tokenizer_folder: Path) -> None:
    config = DecoderConfig(**FAMILIES[name])
    model = write(config, tmp_path, tokenizer_folder)
    path = tmp_path / "model.gguf"
    export_gguf(tmp_path, path, dtype="f32")
    ids = torch.randint(6, 300, (30,), generator=torch.Generator().manual_seed(5)).tolist()
    expected = logprobs(model, ids)
    # Where the end token or a part of a character is likeliest llama.cpp's server reports no probabilities.
    starts = [i for i in range(30) if int(expected[i].argmax()) > 261]
    assert starts
    with llama_cpp(path, context=64) as theirs:
        for i in {*starts[::4], starts[-1]}:
            # Another order of sums, and GELU from a table of 16-bit numbers.
            torch.testing.assert_close(theirs.logprobs(ids[: i + 1], 700), expected[i], rtol=0, atol=0.05)
    again = load_model(path)
    for key, weight in model.state_dict().items():
        # Gemma's norms are stored as 1 + weight and Mamba's decay as −exp(weight), which rounds.
        torch.testing.assert_close(again.state_dict()[key], weight, rtol=0, atol=1e-6)
