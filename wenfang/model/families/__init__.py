"""How each Hugging Face model family names the fields and tensors of our decoder. One small file each."""

from typing import Any

from wenfang.core.errors import ModelError, nearest
from wenfang.core.language import say
from wenfang.model.config import DecoderConfig
from wenfang.model.families import (
    bloom,
    deepseek,
    gemma2,
    gemma3,
    gpt2,
    llama,
    mamba2,
    mistral,
    mixtral,
    mpt,
    native,
    olmo2,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    qwen3_next,
    rwkv7,
    smollm3,
)
from wenfang.model.families.family import Family

__all__ = ["FAMILIES", "Family", "family_for", "family_of"]

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        llama.FAMILY,
        qwen3.FAMILY,
        qwen2.FAMILY,
        mistral.FAMILY,
        qwen3_moe.FAMILY,
        mixtral.FAMILY,
        gemma2.FAMILY,
        gemma3.FAMILY,
        phi3.FAMILY,
        smollm3.FAMILY,
        olmo2.FAMILY,
        deepseek.V2,
        deepseek.V3,
        gpt2.FAMILY,
        bloom.FAMILY,
        mpt.FAMILY,
        mamba2.FAMILY,
        qwen3_next.FAMILY,
        rwkv7.FAMILY,
        native.FAMILY,
    )
}
"""The first that can hold an architecture is the one it is written as, unless the config prefers another. Our own holds
everything and is taken only where it is preferred."""


def family_of(values: dict[str, Any]) -> Family:
    """The family a `config.json` belongs to.

    Raises:
        ModelError: its `model_type` is not one of ours.
    """
    model_type = str(values.get("model_type"))
    if model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ModelError(
            say(
                zh=f"模型種類 {model_type!r} 尚不支援；可用的有 {known}。{nearest(model_type, FAMILIES)}",
                en=f"Model type {model_type!r} is not supported; known are {known}. {nearest(model_type, FAMILIES)}",
            )
        )
    return FAMILIES[model_type]


def family_for(config: DecoderConfig) -> Family:
    """The family that can hold this architecture when it is written.

    Raises:
        ModelError: there is none; the message names what stands in the way of the closest one.
    """
    preferred = [FAMILIES[config.family]] if config.family in FAMILIES else []
    missing: dict[str, list[str]] = {}
    theirs = [family for family in FAMILIES.values() if family is not native.FAMILY]
    for family in (*preferred, *theirs):
        missing[family.model_type] = family.differences(config)
        if not missing[family.model_type]:
            return family
    closest = min(missing, key=lambda name: len(missing[name]))
    fields = ", ".join(f"{name}={getattr(config, name)!r}" for name in missing[closest])
    raise ModelError(
        say(
            zh=f"沒有 Hugging Face 模型種類能表示這個架構；最接近的 {closest} 無法表示 {fields}。",
            en=f"No Hugging Face family can hold this architecture; the closest, {closest}, cannot hold {fields}.",
        )
    )
