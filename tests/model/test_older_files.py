"""Folders as they were written before `transformers` 5, and checkpoints with names of their time: `transformers` reads
them, and we read the same model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from wenfang.model import load_model
from wenfang.model.memory import Memory

TINY = {
    "vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 36,
    "max_position_embeddings": 32, "pad_token_id": 0,
}  # fmt: skip
GONE = ("rope_parameters", "layer_types", "no_rope_layers", "head_dim", "dtype")
LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
YARN = {
    "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "mscale": 0.707, "mscale_all_dim": 0.707,
    "beta_fast": 32, "beta_slow": 1,
}  # fmt: skip
LATENT = {
    "num_key_value_heads": 4, "kv_lora_rank": 10, "q_lora_rank": 14, "qk_rope_head_dim": 6, "qk_nope_head_dim": 8,
    "v_head_dim": 12, "n_routed_experts": 6, "num_experts_per_tok": 2, "n_shared_experts": 2,
    "moe_intermediate_size": 20, "first_k_dense_replace": 1, "n_group": 3, "topk_group": 2,
}  # fmt: skip
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama": ({"num_key_value_heads": 2}, {"rope_theta": 700.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}),
    "llama-multi-head": ({}, {"num_key_value_heads": None, "rope_scaling": {"type": "linear", "factor": 2.0}}),
    "qwen2": ({"num_key_value_heads": 2}, {"rope_theta": 90.0, "use_sliding_window": True, "sliding_window": 5,
                                           "max_window_layers": 2}),
    "gemma2": ({"num_key_value_heads": 2, "head_dim": 6}, {"rope_theta": 90.0, "sliding_window": 5, "head_dim": 6}),
    "gemma3_text": (
        {"num_key_value_heads": 2, "head_dim": 6},
        {"rope_theta": 900.0, "rope_local_base_freq": 30.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
         "sliding_window_pattern": 2, "sliding_window": 5, "head_dim": 6},
    ),
    "phi3": (
        {"num_key_value_heads": 2},
        {"rope_theta": 90.0, "partial_rotary_factor": 0.7, "original_max_position_embeddings": 12,
         "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.2], "long_factor": [2.0, 3.0]}},
    ),
    "smollm3": ({"num_key_value_heads": 2}, {"rope_theta": 90.0, "no_rope_layer_interval": 2}),
    "mixtral": ({"num_key_value_heads": 2, "num_local_experts": 5}, {"rope_theta": 90.0}),
    "deepseek_v2": (LATENT, {"rope_theta": 90.0, "rope_scaling": YARN}),
    "deepseek_v3": (LATENT | {"num_mtp_layers": 0}, {"rope_theta": 90.0, "rope_scaling": YARN}),
}  # fmt: skip


def write(model_type: str, settings: dict[str, Any], folder: Path) -> None:
    torch.manual_seed(4)
    config = AutoConfig.for_model(model_type, **{**TINY, **settings})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, 1.5 * weight.shape[-1] ** -0.5) if weight.ndim > 1 else weight.uniform_(-0.5, 1.5)
    model.save_pretrained(folder)


@torch.no_grad()
def compare(folder: Path) -> None:
    ids = torch.randint(1, 61, (2, 19), generator=torch.Generator().manual_seed(7))
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    ours = load_model(folder).eval()(ids, torch.arange(19).expand(2, -1), Memory())
    # The same fp32 arithmetic in another order of summation.
    torch.testing.assert_close(ours, theirs(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_a_config_of_transformers_4(name: str, tmp_path: Path) -> None:
    settings, old = CASES[name]
    write(name.split("-")[0], settings, tmp_path)
    path = tmp_path / "config.json"
    values = {key: value for key, value in json.loads(path.read_text()).items() if key not in GONE}
    path.write_text(json.dumps(values | old))
    compare(tmp_path)


@pytest.mark.parametrize(("model_type", "mask"), [("gpt2", "h.0.attn.bias"), ("bloom", None)])
def test_tensors_without_prefix_and_with_masks(model_type: str, mask: str | None, tmp_path: Path) -> None:
    """As on the Hub: `openai-community/gpt2` and `bigscience/bloom-560m` name no inner model, and GPT-2 keeps masks."""
    write(model_type, {}, tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    if mask:
        tensors[mask] = torch.ones(1, 1, 32, 32).tril()
    save_file(tensors, path, metadata={"format": "pt"})
    compare(tmp_path)
