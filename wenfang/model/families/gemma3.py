"""Gemma 3, text: Gemma 2 with normalised queries and keys, and a rotary embedding each for sliding and full layers."""

from wenfang.model.config import DecoderConfig
from wenfang.model.families import gemma2, hf
from wenfang.model.families.family import Family, Values, shortest
from wenfang.model.parts import RopeConfig

KINDS = ("sliding_attention", "full_attention")


def _read(values: Values) -> Values:
    every = values.get("sliding_window_pattern", 6)
    layers = range(values["num_hidden_layers"])
    types = values.get("layer_types") or [KINDS[(layer + 1) % every == 0] for layer in layers]
    context = values["max_position_embeddings"]
    by_kind = values.get("rope_parameters") or {
        "sliding_attention": {"rope_theta": values.get("rope_local_base_freq", 10_000.0)},
        "full_attention": {"rope_theta": values.get("rope_theta", 1_000_000.0), **values.get("rope_scaling", {})},
    }
    ropes = {kind: hf.rope_from_hf(by_kind.get(kind) or {}, context) for kind in KINDS}
    return {
        **gemma2.read_base(values),
        **hf.read_layer_types(types, values.get("sliding_window", 4096)),
        "ropes": shortest([ropes[kind] for kind in types]),
        "context": context,
    }


def _write(config: DecoderConfig) -> Values:
    types = hf.write_layer_types(config)
    ropes = {kind: RopeConfig() for kind in KINDS}
    for layer, kind in enumerate(types["layer_types"]):
        ropes[kind] = config.rope(layer) or RopeConfig()
    return {
        **gemma2.write_base(config),
        **types,
        "max_position_embeddings": config.context,
        "rope_parameters": {kind: hf.rope_to_hf(rope) for kind, rope in ropes.items()},
    }


FAMILY = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    fields=gemma2.FIELDS,
    defaults=gemma2.DEFAULTS | {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    fixed=gemma2.FIXED,
    traits={**gemma2.TRAITS, "qk_norm": "head"},
    links=gemma2.links,
    read=_read,
    write=_write,
)
