"""Mistral 7B and its like: Llama with one sliding window for all layers."""

from wenfang.model.config import DecoderConfig
from wenfang.model.families import hf
from wenfang.model.families.family import Family, Values


def _read(values: Values) -> Values:
    return {**hf.read_heads(values), **hf.read_rope(values), **hf.read_window(values)}


def _write(config: DecoderConfig) -> Values:
    return {**hf.write_heads(config), **hf.write_rope(config), **hf.write_window(config)}


FAMILY = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    fields=hf.FIELDS,
    defaults=hf.DEFAULTS,
    fixed=hf.FIXED,
    traits={"qk_norm": None},
    links=hf.links,
    read=_read,
    write=_write,
)
