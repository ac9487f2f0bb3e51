"""Gemma 2: soft-caps, norms on both sides with offset weights, scaled embeddings, a sliding window in every other
layer."""

from wenfang.model.config import DecoderConfig
from wenfang.model.families import hf
from wenfang.model.families.family import Family, Values
from wenfang.model.families.tensor_map import Link

LINKS = (
    Link("layers.*.mixer_post_norm", "model.layers.*.post_attention_layernorm"),
    Link("layers.*.mlp_norm", "model.layers.*.pre_feedforward_layernorm"),
    Link("layers.*.mlp_post_norm", "model.layers.*.post_feedforward_layernorm"),
    *hf.LINKS,
)
FIELDS = {
    **hf.FIELDS,
    "attn_logit_softcapping": "attention_softcap",
    "final_logit_softcapping": "logit_softcap",
}
TRAITS = {"norm_offset": True, "norm_placement": "sandwich"}
DEFAULTS = hf.DEFAULTS | {"tie_word_embeddings": True, "query_pre_attn_scalar": 256, "head_dim": 256}
CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
FIXED = hf.FIXED | {"use_bidirectional_attention": False}


def links(_: DecoderConfig) -> tuple[Link, ...]:
    """Gemma's names of tensors."""
    return LINKS


def read_base(values: Values) -> Values:
    """What Gemma 2 and 3 share."""
    bias = values.get("attention_bias", False)
    return {
        **hf.read_heads(values),
        "activation": hf.read_activation(values.get("hidden_activation", "gelu_pytorch_tanh")),
        "attention_scale": values["query_pre_attn_scalar"] ** -0.5,
        "embedding_scale": values["hidden_size"] ** 0.5,
        "qkv_bias": bias,
        "o_bias": bias,
    }


def write_base(config: DecoderConfig) -> Values:
    """The same, written out."""
    scale = config.attention_scale or config.head_dim**-0.5
    return {
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_activation": hf.write_activation(config.activation),
        "query_pre_attn_scalar": round(scale**-2),
        "attention_bias": config.qkv_bias,
    }


def _read(values: Values) -> Values:
    layers = range(values["num_hidden_layers"])
    types = values.get("layer_types") or [("sliding_attention", "full_attention")[layer % 2] for layer in layers]
    windows = hf.read_layer_types(types, values.get("sliding_window", 4096))
    return {**read_base(values), **hf.read_rope(values), **windows}


def _write(config: DecoderConfig) -> Values:
    return {**write_base(config), **hf.write_rope(config), **hf.write_layer_types(config)}


FAMILY = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    fields=FIELDS,
    defaults=DEFAULTS | CAPS,
    fixed=FIXED,
    traits={**TRAITS, "qk_norm": None},
    links=links,
    read=_read,
    write=_write,
)
