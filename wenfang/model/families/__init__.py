"""How each Hugging Face model family names the fields and tensors of our decoder. One small file each."""

from typing import Any, Protocol

from wenfang.core.errors import ModelError, nearest
from wenfang.core.language import say
from wenfang.model.config import DecoderConfig
from wenfang.model.families import llama, qwen3
from wenfang.model.families.weights import Link


class Family(Protocol):
    """What a family module holds."""

    MODEL_TYPE: str
    ARCHITECTURE: str
    LINKS: tuple[Link, ...]

    def expresses(self, config: DecoderConfig) -> bool:
        """Whether this family can hold the architecture exactly."""

    def to_hf(self, config: DecoderConfig) -> dict[str, Any]:
        """The family's `config.json` fields for our config."""

    def from_hf(self, values: dict[str, Any]) -> DecoderConfig:
        """Our config for the family's `config.json`; refuses what the decoder cannot do."""


FAMILIES: dict[str, Family] = {llama.MODEL_TYPE: llama, qwen3.MODEL_TYPE: qwen3}


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
        ModelError: there is none.
    """
    for family in FAMILIES.values():
        if family.expresses(config):
            return family
    raise ModelError(
        say(
            zh="沒有 Hugging Face 模型種類能表示這個架構，無法寫出。",
            en="No Hugging Face model family can express this architecture; it cannot be written.",
        )
    )
