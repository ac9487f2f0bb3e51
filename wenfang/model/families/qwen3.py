"""Qwen3, dense: RMS-normalised queries and keys."""

from wenfang.model.config import DecoderConfig
from wenfang.model.families import hf
from wenfang.model.families.family import Family, Values


def _read(values: Values) -> Values:
    bias = values.get("attention_bias", False)
    heads = hf.read_heads({"head_dim": 128, **values})
    return {**heads, **hf.read_rope(values), **hf.read_optional_windows(values), "qkv_bias": bias, "o_bias": bias}


def _write(config: DecoderConfig) -> Values:
    return {
        **hf.write_heads(config),
        **hf.write_rope(config),
        **hf.write_optional_windows(config),
        "attention_bias": config.qkv_bias,
    }


FAMILY = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    fields=hf.FIELDS,
    defaults=hf.DEFAULTS,
    fixed=hf.FIXED,
    traits={"qk_norm": "head"},
    links=hf.links,
    read=_read,
    write=_write,
)
