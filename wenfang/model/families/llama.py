"""Llama 2 and 3.x, SmolLM2, and what else follows their layout."""

from wenfang.model.config import DecoderConfig
from wenfang.model.families import hf
from wenfang.model.families.family import Family, Values


def _read(values: Values) -> Values:
    bias = values.get("attention_bias", False)
    return {**hf.read_heads(values), **hf.read_rope(values), "qkv_bias": bias, "o_bias": bias}


def _write(config: DecoderConfig) -> Values:
    return {**hf.write_heads(config), **hf.write_rope(config), "attention_bias": config.qkv_bias}


FAMILY = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    fields={**hf.FIELDS, "mlp_bias": "mlp_bias"},
    defaults={**hf.DEFAULTS, "mlp_bias": False},
    fixed=hf.FIXED,
    traits={"qk_norm": None},
    links=hf.links,
    read=_read,
    write=_write,
)
