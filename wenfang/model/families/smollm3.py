"""SmolLM3: Llama without any position in every fourth layer."""

from wenfang.model.config import DecoderConfig
from wenfang.model.families import hf, llama
from wenfang.model.families.family import Family, Values, shortest


def _read(values: Values) -> Values:
    layers, every = range(values["num_hidden_layers"]), values.get("no_rope_layer_interval", 4)
    rotated = values.get("no_rope_layers") or [int((layer + 1) % every != 0) for layer in layers]
    window = values.get("sliding_window") if values.get("use_sliding_window", False) else None
    usual = ["full_attention" if window is None or has_rope else "sliding_attention" for has_rope in rotated]
    bias = values.get("attention_bias", False)
    rope = hf.read_rope(values, theta=2_000_000.0)
    types = values.get("layer_types") or usual
    return {
        **hf.read_heads(values),
        **hf.read_layer_types(types if window else ["full_attention"] * len(types), window),
        "context": rope["context"],
        "ropes": shortest([rope["ropes"][0] if has_rope else None for has_rope in rotated]),
        "qkv_bias": bias,
        "o_bias": bias,
    }


def _write(config: DecoderConfig) -> Values:
    types = hf.write_layer_types(config)
    return {
        **hf.write_heads(config),
        **hf.write_rope(config),
        **types,
        "use_sliding_window": types["sliding_window"] is not None,
        "no_rope_layers": [int(config.rope(layer) is not None) for layer in range(config.layers)],
        "attention_bias": config.qkv_bias,
    }


FAMILY = Family(
    model_type="smollm3",
    architecture="SmolLM3ForCausalLM",
    fields=llama.FAMILY.fields,
    defaults=llama.FAMILY.defaults | {"tie_word_embeddings": True},
    fixed=hf.FIXED,
    traits={"qk_norm": None},
    links=hf.links,
    read=_read,
    write=_write,
)
