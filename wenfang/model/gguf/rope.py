"""Rotary embedding for contexts longer than the first: as keys (linear, YaRN), or as tensors of factors (Llama 3,
LongRoPE)."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from wenfang.model.config import DecoderConfig
from wenfang.model.families.family import Values
from wenfang.model.gguf.header import uncarried
from wenfang.model.parts import LinearScaling, Llama3Scaling, LongRopeScaling, RopeConfig, YarnScaling
from wenfang.model.position import frequencies

FACTORS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
TYPE, FACTOR, ORIGINAL = "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length"
FINETUNED = "rope.scaling.finetuned"
LARGEST = 1e6
"""Beyond any factor in use."""
TEMPERATURE = "rope.scaling.yarn_log_multiplier"
"""DeepSeek: scores are multiplied by (1 + this · ln factor)², and angles by nothing."""
ATTENTION = "rope.scaling.attn_factor"
"""LongRoPE: cosines and sines are multiplied by this."""
KEYS = (TYPE, FACTOR, ORIGINAL, FINETUNED, TEMPERATURE, ATTENTION)
NUMBERS = (FACTOR, ORIGINAL, TEMPERATURE, ATTENTION)


def scaling_keys(config: DecoderConfig, tensors: Mapping[str, Tensor]) -> Values:
    """The keys for a config's scaling beside its tensors of factors; none for one that they cannot express."""
    scaling = _rope(config).scaling
    if isinstance(scaling, LongRopeScaling) and LONG in tensors:
        return {ORIGINAL: scaling.original_context, ATTENTION: scaling.attention_factor}
    if isinstance(scaling, LinearScaling):
        return {TYPE: "linear", FACTOR: scaling.factor}
    if isinstance(scaling, YarnScaling):
        keys: Values = {TYPE: "yarn", FACTOR: scaling.factor, ORIGINAL: scaling.original_context}
        return keys | ({} if config.mla is None else {TEMPERATURE: _temperature(config, scaling.factor)})
    return {}


def scaling_values(keys: Values, tensors: Mapping[str, Tensor]) -> Values:
    """`rope_parameters` besides the base, from keys and tensors of factors.

    Raises:
        ModelError: they ask for something that no rotary embedding here does.
    """
    kind, factors_F = keys.get(TYPE, "none"), tensors.get(FACTORS)
    if kind in ("none", "longrope") and tensors.keys() & {LONG, SHORT}:
        return {
            "rope_type": "longrope",
            "long_factor": tensors[LONG].tolist(),
            "short_factor": tensors[SHORT].tolist(),
            "original_max_position_embeddings": keys[ORIGINAL],
            "attention_factor": keys.get(ATTENTION, 1.0),
        }
    if keys.get(ATTENTION, 1.0) != 1.0:
        raise uncarried(ATTENTION, keys[ATTENTION])
    if factors_F is not None and kind in ("none", "linear") and keys.get(FACTOR, 1.0) == 1.0:
        return _llama3(factors_F, keys)
    if kind == "none" and factors_F is None:
        return {}
    if kind not in ("linear", "yarn") or factors_F is not None:
        raise uncarried(TYPE, kind)
    values: Values = {"rope_type": kind, "factor": keys[FACTOR]}
    if kind == "yarn":
        values["original_max_position_embeddings"] = keys[ORIGINAL]
        if "attention.kv_lora_rank" in keys:
            weight = 10 * float(str(np.float32(keys.get(TEMPERATURE, 0.0))))
            values |= {"attention_factor": 1.0} | ({"mscale_all_dim": weight} if weight else {})
    return values


def rope_tensors(config: DecoderConfig) -> dict[str, Tensor]:
    """What llama.cpp divides each frequency by for the scalings of Llama 3 and LongRoPE; nothing for any other."""
    rope = _rope(config)
    match rope.scaling:
        case Llama3Scaling():
            return {FACTORS: _factors(rope, config.rope_width(rope))}
        case LongRopeScaling(long_factor=long, short_factor=short):
            return {LONG: torch.tensor(long, dtype=torch.float64), SHORT: torch.tensor(short, dtype=torch.float64)}
    return {}


def _temperature(config: DecoderConfig, factor: float) -> float:
    if config.attention_scale is None or factor <= 1:
        return 0.0
    return ((config.attention_scale * config.head_dim**0.5) ** 0.5 - 1) / math.log(factor)


def _rope(config: DecoderConfig) -> RopeConfig:
    """The scaled one of a config's rotary embeddings, or the first."""
    ropes = [rope for rope in config.ropes if rope]
    return next((rope for rope in ropes if rope.scaling), ropes[0] if ropes else RopeConfig())


def _factors(rope: RopeConfig, width: int) -> Tensor:
    anywhere_11 = torch.zeros(1, 1, dtype=torch.long)
    plain_F, _ = frequencies(rope.model_copy(update={"scaling": None}), width, anywhere_11)
    return plain_F / frequencies(rope, width, anywhere_11)[0]


def _llama3(factors_F: Tensor, keys: Values) -> Values:
    """The scaling that has these factors. Files keep no more of it, but all of Meta's differ in two numbers alone."""
    base, largest = float(keys.get("rope.freq_base", 10_000.0)), float(factors_F.max())
    sensible = base > 0 and 1 <= largest < LARGEST
    for original in (1 << power for power in range(4, 21) if sensible):
        scaling = Llama3Scaling(factor=largest, original_context=original)
        rope = RopeConfig(theta=base, scaling=scaling)
        if torch.allclose(_factors(rope, 2 * len(factors_F)), factors_F, rtol=1e-4):
            hf = {"rope_type": "llama3", "original_max_position_embeddings": original}
            return hf | {name: getattr(scaling, name) for name in ("factor", "low_freq_factor", "high_freq_factor")}
    raise uncarried(FACTORS, [round(float(factor), 3) for factor in factors_F[-3:]])
