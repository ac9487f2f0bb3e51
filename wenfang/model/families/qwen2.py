"""Qwen2 and Qwen2.5: biases on queries, keys and values; sliding windows in the upper layers, if any."""

from wenfang.model.config import DecoderConfig
from wenfang.model.families import hf
from wenfang.model.families.family import Family, Values


def _read(values: Values) -> Values:
    return {**hf.read_heads(values), **hf.read_rope(values), **hf.read_optional_windows(values)}


def _write(config: DecoderConfig) -> Values:
    return {**hf.write_heads(config), **hf.write_rope(config), **hf.write_optional_windows(config)}


FAMILY = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    fields=hf.FIELDS,
    defaults=hf.DEFAULTS,
    fixed=hf.FIXED,
    traits={"qk_norm": None, "qkv_bias": True},
    links=hf.links,
    read=_read,
    write=_write,
)
