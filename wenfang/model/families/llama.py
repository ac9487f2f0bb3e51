"""Llama 2 and what follows its layout: no QK-norm, no biases."""

from typing import Any

from wenfang.model.config import DecoderConfig
from wenfang.model.families.hf import base_from_hf, base_to_hf, refuse_unless

MODEL_TYPE = "llama"
ARCHITECTURE = "LlamaForCausalLM"


def expresses(config: DecoderConfig) -> bool:
    return not config.qk_norm


def to_hf(config: DecoderConfig) -> dict[str, Any]:
    return base_to_hf(config) | {"mlp_bias": False}


def from_hf(values: dict[str, Any]) -> DecoderConfig:
    refuse_unless(values, "mlp_bias", False)
    return base_from_hf(values, qk_norm=False)
