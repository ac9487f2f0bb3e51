"""Qwen3 (dense): Llama's layout with RMS-normalised queries and keys."""

from typing import Any

from wenfang.model.config import DecoderConfig
from wenfang.model.families.hf import BASE_LINKS, base_from_hf, base_to_hf, is_plain, refuse_unless

MODEL_TYPE = "qwen3"
ARCHITECTURE = "Qwen3ForCausalLM"
LINKS = BASE_LINKS


def expresses(config: DecoderConfig) -> bool:
    return config.qk_norm and is_plain(config)


def to_hf(config: DecoderConfig) -> dict[str, Any]:
    return base_to_hf(config) | {"use_sliding_window": False}


def from_hf(values: dict[str, Any]) -> DecoderConfig:
    refuse_unless(values, "use_sliding_window", False)
    return base_from_hf(values, qk_norm=True)
