"""Llama 2 and what follows its layout: no QK-norm, no biases."""

from typing import Any

from wenfang.model.config import DecoderConfig
from wenfang.model.families.hf import BASE_LINKS, base_from_hf, base_to_hf, is_plain, refuse_unless

MODEL_TYPE = "llama"
ARCHITECTURE = "LlamaForCausalLM"
LINKS = BASE_LINKS


def expresses(config: DecoderConfig) -> bool:
    return not config.qk_norm and is_plain(config)


def to_hf(config: DecoderConfig) -> dict[str, Any]:
    return base_to_hf(config) | {"mlp_bias": False}


def from_hf(values: dict[str, Any]) -> DecoderConfig:
    refuse_unless(values, "mlp_bias", False)
    return base_from_hf(values, qk_norm=False)
