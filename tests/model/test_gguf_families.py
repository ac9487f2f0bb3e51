"""Every family that llama.cpp knows, written as GGUF and run by llama.cpp itself on random weights."""

import contextlib
import math
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from judge_llama_cpp import llama_cpp
from test_folder import random_model, write
from test_gguf_llama_cpp import divergence, logprobs

from wenfang.core.errors import ModelError
from wenfang.model import Decoder, DecoderConfig, load_model, save_model
from wenfang.model.gguf import GGUFDtype, GGUFFile, export_gguf
from wenfang.model.gguf.architectures import architecture_of
from wenfang.model.gguf.keys import file_values
from wenfang.model.mixers.config import GatedDeltaNetConfig, Mamba2Config, Rwkv7Config
from wenfang.model.parts import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    MlaConfig,
    MoeConfig,
    RopeConfig,
    YarnScaling,
)

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
MLA = {
    **BASE, "kv_heads": 4, "head_dim": 24, "qk_norm": None,
    "mla": MlaConfig(kv_rank=16, query_rank=20, rope_dim=8, value_dim=12),
}  # fmt: skip
MOE = MoeConfig(experts=5, active=2, hidden=24, balance="loss")
GEMMA3 = {
    **BASE, "family": "gemma3_text", "head_dim": 16, "kv_heads": 1, "windows": (*[8] * 5, None),
    "ropes": (*[RopeConfig()] * 5, RopeConfig(theta=2e4, scaling=LinearScaling(factor=8.0))),
    "norm_offset": True, "norm_placement": "sandwich", "activation": "gelu_tanh", "embedding_scale": 32**0.5,
    "tie_embeddings": True,
}  # fmt: skip
LONG_ROPE = RopeConfig(
    theta=500.0,
    fraction=0.75,
    scaling=LongRopeScaling(
        short_factor=(1.0, 1.0299999713897705, 1.1), long_factor=(1.2, 2.5, 3.9), original_context=16,
        attention_factor=1.15,
    ),
)  # fmt: skip
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
    "gemma3-linear": {**GEMMA3, "layers": 7, "attention_scale": 0.25},
    # Of so many layers that llama.cpp takes it for the model of 27B, which scales its scores otherwise.
    "gemma3-27b": {**GEMMA3, "layers": 62, "attention_scale": 8**-0.5},
    "phi3-longrope": {
        **BASE, "family": "phi3", "qk_norm": None, "ropes": (LONG_ROPE,),
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
    "llama-llama3": {
        **BASE, "family": "llama", "qk_norm": None, "head_dim": 16,
        "ropes": (RopeConfig(theta=500.0, scaling=Llama3Scaling(factor=8.0, original_context=16)),),
    },
    "qwen3-yarn": {
        **BASE, "family": "qwen3", "head_dim": 16,
        "ropes": (RopeConfig(theta=500.0, scaling=YarnScaling(factor=4.0, original_context=16)),),
    },
    "llama-linear": {
        **BASE, "family": "llama", "qk_norm": None, "head_dim": 16,
        "ropes": (RopeConfig(scaling=LinearScaling(factor=3.0)),),
    },
    "deepseek_v2": {
        **MLA, "family": "deepseek_v2",
        "moe": MoeConfig(experts=6, active=2, hidden=24, layers=(False, True, True), shared_hidden=48, normalise=False,
                         balance="loss", scale=1.5),
    },
    "deepseek_v3": {
        **MLA, "family": "deepseek_v3",
        "moe": MoeConfig(experts=8, active=3, hidden=24, layers=(False, True, True), shared_hidden=24, balance="bias",
                         scores="sigmoid", scale=2.5, groups=4, active_groups=2),
    },
    "deepseek_v3-yarn": {
        **MLA, "family": "deepseek_v3", "attention_scale": (1 + 0.08 * math.log(4.0)) ** 2 / 24**0.5,
        "ropes": (
            RopeConfig(theta=500.0, scaling=YarnScaling(factor=4.0, original_context=16, attention_factor=1.0)),
        ),
        "moe": MoeConfig(experts=8, active=3, hidden=24, layers=(False, True, True), shared_hidden=24, balance="bias",
                         scores="sigmoid", scale=2.5, groups=4, active_groups=2),
    },
    "rwkv7": {
        **BASE, "family": "rwkv7", "mixers": "rwkv7", "dim": 128, "hidden": 160, "ropes": (None,), "norm": "layer",
        "norm_bias": True, "embedding_norm": True, "token_shift": True, "activation": "relu2", "gated": False,
        "norm_eps": 1e-5,
        "rwkv7": Rwkv7Config(heads=2, head_dim=64, decay_rank=6, rate_rank=5, value_rank=4, gate_rank=7),
    },
    "qwen3_next": {
        **BASE, "family": "qwen3_next", "layers": 4, "head_dim": 16, "norm_offset": True, "attention_gate": True,
        "mixers": (*["gated_deltanet"] * 3, "attention"), "ropes": (RopeConfig(fraction=0.25),),
        "gated_deltanet": GatedDeltaNetConfig(key_heads=2, value_heads=4, key_dim=16, value_dim=16),
        "moe": MOE.model_copy(update={"shared_hidden": 20, "shared_gate": True}),
    },
}  # fmt: skip


REFUSED = {
    "mistral": ({"windows": (8,)}, "llama cannot express this model's windows"),
    "mixtral": ({"windows": (8,)}, "llama cannot express this model's windows"),
    "qwen3_moe": ({"moe": MOE.model_copy(update={"normalise": False})}, "qwen3moe cannot express this model's moe"),
    "smollm3": ({"ropes": (RopeConfig(), None)}, "smollm3 cannot express this model's ropes"),
    "olmo2": ({"head_dim": 6}, "olmo2 cannot express this model's head_dim"),
    "phi3": ({"windows": (8,)}, "phi3 cannot express this model's windows"),
    "mistral-longrope": (
        {"ropes": (LONG_ROPE.model_copy(update={"fraction": 1.0}),)}, "llama cannot express this model's ropes",
    ),
    "gemma3-27b": (
        {"ropes": (RopeConfig(scaling=YarnScaling(factor=8.0, original_context=16)),)}, "default|linear",
    ),
    "gemma2": ({"attention_scale": 0.5}, "gemma2 cannot express this model's attention_scale"),
    "mpt": ({"attention_scale": 0.5}, "mpt cannot express this model's attention_scale"),
    "qwen3-yarn": (
        {"ropes": (RopeConfig(scaling=Llama3Scaling(factor=8.0, original_context=16)),)},
        "qwen3 cannot express this model's ropes",
    ),
    "llama-llama3": (
        {"ropes": (RopeConfig(scaling=YarnScaling(factor=4.0, original_context=16, beta_fast=20.0)),)},
        "llama cannot express this model's ropes",
    ),
    "mamba2": (
        {"mamba2": Mamba2Config(heads=8, head_dim=8, conv_bias=False)}, "mamba2 cannot express this model's mamba2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_architecture_has_no_key_for_is_refused_by_field(
    name: str, tmp_path: Path, tokenizer_folder: Path
) -> None:
    changes, told = REFUSED[name]
    write(DecoderConfig(**FAMILIES[name.removesuffix("-longrope")] | changes), tmp_path, tokenizer_folder)
    with pytest.raises(ModelError, match=told):
        export_gguf(tmp_path, tmp_path / "model.gguf", dtype="f32")


def made(name: str, folder: Path, tokenizer: Path, **changes: object) -> Decoder:
    """A random model of the family in `folder`, biases of the experts' choice included."""
    model = random_model(DecoderConfig(**FAMILIES[name] | changes))
    with torch.no_grad():
        for weight in (*model.buffers(), *(weight for weight in model.parameters() if weight.ndim == 3)):
            weight.normal_(0.0, 0.2)
    save_model(model, folder, tokenizer=tokenizer, bos_id=1, end_id=2, card="test")
    return model


def answered(expected_NV: torch.Tensor) -> list[int]:
    """Where llama.cpp's server reports probabilities: neither the end token nor a part of a character is likeliest."""
    return [i for i, row in enumerate(expected_NV) if int(row.argmax()) > 261]


IDS = torch.randint(6, 300, (30,), generator=torch.Generator().manual_seed(5)).tolist()


@pytest.mark.parametrize("name", FAMILIES)
def test_llama_cpp_runs_the_family_as_we_do(name: str, tmp_path: Path, tokenizer_folder: Path) -> None:
    model, path = made(name, tmp_path, tokenizer_folder), tmp_path / "model.gguf"
    export_gguf(tmp_path, path, dtype="f32")
    expected = logprobs(model, IDS)
    starts = answered(expected)
    assert starts
    with llama_cpp(path, context=64) as theirs:
        for i in {*starts[::4], starts[-1]}:
            # Another order of sums, and GELU from a table of 16-bit numbers, which adds up over 62 layers: there any
            # wrong scale or rotation makes 8 of a difference.
            atol = 0.5 if model.config.layers > 60 else 0.05
            torch.testing.assert_close(theirs.logprobs(IDS[: i + 1], 700), expected[i], rtol=0, atol=atol)
    again = load_model(path)
    for key, weight in model.state_dict().items():
        # Gemma's norms are stored as 1 + weight and Mamba's decay as −exp(weight), which rounds.
        torch.testing.assert_close(again.state_dict()[key], weight, rtol=0, atol=1e-6)


# Of fused matrices, experts, recurrent layers. Bounds are the mean KL divergence in nats, of weights far rougher than
# trained ones: twice to four times what was measured on 2026-11-24. llama.cpp also rounds what q8_0 is multiplied by.
@pytest.mark.parametrize(
    ("name", "dtype", "bound"),
    [
        ("mixtral", "q8_0", 2e-3),
        ("gpt2", "q4_0", 2e-4),
        ("deepseek_v3", "bf16", 0.04),
        ("mamba2", "f16", 1e-6),
        ("rwkv7", "q8_0", 2e-3),
        ("qwen3_next", "f16", 0.01),
    ],
)
def test_llama_cpp_computes_with_what_we_read_from_the_same_file(
    name: str, dtype: GGUFDtype, bound: float, tmp_path: Path, tokenizer_folder: Path
) -> None:
    moe = {"moe": MOE.model_copy(update={"hidden": 32}), "hidden": 32} if name == "mixtral" else {}
    made(name, tmp_path, tokenizer_folder, **moe)
    path = tmp_path / "model.gguf"
    export_gguf(tmp_path, path, dtype=dtype)
    stored = {tensor.kind for tensor in GGUFFile(path).tensors.values()}
    assert GGMLQuantizationType[dtype.upper()] in stored
    expected = logprobs(load_model(path), IDS)
    starts = answered(expected)[::3]
    with llama_cpp(path, context=64) as theirs:
        found = torch.stack([theirs.logprobs(IDS[: i + 1], 700) for i in starts])
    assert abs(divergence(expected[starts], found)) < bound


def split_latent(path: Path, out: Path) -> None:
    """A DeepSeek file as llama.cpp's converter writes it since 2025: keys and values apart, the keys transposed."""
    file = GGUFFile(path)
    keys = dict(file.metadata)
    p, heads, rank = "deepseek2.attention.", keys["deepseek2.attention.head_count"], MLA["mla"].kv_rank
    keys |= {p + "key_length_mla": keys[p + "key_length"], p + "value_length_mla": keys[p + "value_length"]}
    keys |= {p + "key_length": rank + MLA["mla"].rope_dim, p + "value_length": rank, p + "head_count_kv": 1}
    writer = GGUFWriter(out, "deepseek2")
    for key, value in keys.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif key not in ("general.architecture",):
            kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
            kinds[type(value)](key, value)
    for name in file.tensors:
        weight = file.read(name)
        if name.endswith("attn_kv_b.weight"):
            keys_HNR, values_HVR = weight.unflatten(0, (heads, -1)).split((16, MLA["mla"].value_dim), 1)
            writer.add_tensor(name.replace("kv_b", "k_b"), keys_HNR.mT.contiguous().numpy())
            writer.add_tensor(name.replace("kv_b", "v_b"), values_HVR.contiguous().numpy())
        else:
            writer.add_tensor(name, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", ["deepseek_v2", "deepseek_v3-yarn"])
def test_deepseek_files_of_both_layouts_are_the_same_model(name: str, tmp_path: Path, tokenizer_folder: Path) -> None:
    model, newer = made(name, tmp_path, tokenizer_folder), tmp_path / "newer.gguf"
    export_gguf(tmp_path, tmp_path / "model.gguf", dtype="f32")
    split_latent(tmp_path / "model.gguf", newer)
    again = load_model(newer)
    for key, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], weight), key
    expected = logprobs(again, IDS)
    with llama_cpp(newer, context=64) as theirs:
        for i in answered(expected)[::4]:
            torch.testing.assert_close(theirs.logprobs(IDS[: i + 1], 700), expected[i], rtol=0, atol=0.05)


@pytest.mark.parametrize("name", FAMILIES)
def test_missing_and_senseless_keys_are_told(name: str, tmp_path: Path, tokenizer_folder: Path) -> None:
    made(name, tmp_path, tokenizer_folder)
    path = tmp_path / "model.gguf"
    export_gguf(tmp_path, path, dtype="f16")
    file = GGUFFile(path)
    architecture = architecture_of(file)
    whole = dict(file.metadata)
    keys = [key for key in whole if key.startswith(architecture.prefix)]
    assert len(keys) > 5
    for key in keys:
        for value in (None, 0, -3, "text", [2], 1 << 40):
            file.metadata.clear()
            file.metadata.update(whole | {key: value})
            if value is None:
                del file.metadata[key]
            with contextlib.suppress(ModelError):  # Some keys may be left out, and some may be 0.
                architecture.family.from_hf(file_values(file))
