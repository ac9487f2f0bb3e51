"""What the Llama-like families share: names of fields and tensors, rotary embedding, sliding windows."""

import math
from typing import Any

from wenfang.core.errors import ModelError
from wenfang.core.language import say
from wenfang.model.config import Activation, DecoderConfig
from wenfang.model.families.family import Values, shortest, unsupported
from wenfang.model.families.tensor_map import Link
from wenfang.model.parts import DynamicScaling, RopeConfig

FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "hidden",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tie_embeddings",
}
DEFAULTS = {"tie_word_embeddings": False, "rms_norm_eps": 1e-6}
FIXED = {"attention_dropout": 0.0}

LINKS = (
    Link("lm_head", "lm_head"),
    Link("embed_tokens", "model.embed_tokens"),
    Link("norm", "model.norm"),
    Link("layers.*.mixer_norm", "model.layers.*.input_layernorm"),
    Link("layers.*.mixer", "model.layers.*.self_attn"),
    Link("layers.*.mlp_norm", "model.layers.*.post_attention_layernorm"),
    Link("layers.*.mlp", "model.layers.*.mlp"),
)
EXPERT_LINKS = (
    Link("layers.*.mlp.router", "model.layers.*.mlp.gate"),
    Link("layers.*.mlp.gate_proj.weight", "model.layers.*.mlp.experts.#.gate_proj.weight"),
    Link("layers.*.mlp.up_proj.weight", "model.layers.*.mlp.experts.#.up_proj.weight"),
    Link("layers.*.mlp.down_proj.weight", "model.layers.*.mlp.experts.#.down_proj.weight"),
)
"""Experts as Qwen and DeepSeek name them."""


def links(_: DecoderConfig) -> tuple[Link, ...]:
    """Llama's names of tensors."""
    return LINKS


def expert_links(_: DecoderConfig) -> tuple[Link, ...]:
    """Llama's names, and those of experts in the layers that have them."""
    return (*EXPERT_LINKS, *LINKS)


ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu2": "relu2",
}


def read_activation(name: str) -> Activation:
    """Our activation for theirs.

    Raises:
        ModelError: there is none.
    """
    if name not in ACTIVATIONS:
        raise unsupported("hidden_act", name, "|".join(ACTIVATIONS))
    return ACTIVATIONS[name]


def write_activation(activation: Activation) -> str:
    """Their name of our activation."""
    return next(theirs for theirs, ours in ACTIVATIONS.items() if ours == activation)


def read_heads(values: Values) -> Values:
    """Key/value heads and head width, which older files leave out."""
    heads = values["num_attention_heads"]
    return {
        "kv_heads": values.get("num_key_value_heads", heads),
        "head_dim": values.get("head_dim", values["hidden_size"] // heads),
        "activation": read_activation(values.get("hidden_act", "silu")),
    }


def write_heads(config: DecoderConfig) -> Values:
    """The same, written out."""
    return {
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": write_activation(config.activation),
    }


def read_rope(values: Values, *, theta: float = 10_000.0) -> Values:
    """The one rotary embedding of all layers and the context, which dynamic scaling extends.

    Args:
        theta: what the family assumes where the file says nothing.
    """
    parameters = dict(values.get("rope_parameters") or values.get("rope_scaling") or {})
    parameters.setdefault("rope_theta", values.get("rope_theta", theta))
    if "partial_rotary_factor" in values:
        parameters.setdefault("partial_rotary_factor", values["partial_rotary_factor"])
    if "original_max_position_embeddings" in values:
        parameters["original_max_position_embeddings"] = values["original_max_position_embeddings"]
    context = values["max_position_embeddings"]
    rope = rope_from_hf(parameters, context)
    if isinstance(rope.scaling, DynamicScaling):
        context = int(context * rope.scaling.factor)
    return {"ropes": (rope,), "context": context}


def write_rope(config: DecoderConfig) -> Values:
    """The same, written out; of several kinds of layers the first that rotates."""
    rope = next(filter(None, config.ropes), RopeConfig())
    context = rope.scaling.original_context if isinstance(rope.scaling, DynamicScaling) else config.context
    return {
        "max_position_embeddings": context,
        "rope_theta": rope.theta,
        "rope_parameters": rope_to_hf(rope),
    }


def rope_from_hf(parameters: Values, context: int) -> RopeConfig:
    """Our rotary embedding for theirs.

    Args:
        context: `max_position_embeddings`, the original context where nothing else is said.
    """
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    original = parameters.get("original_max_position_embeddings") or context
    names = {
        "default": (),
        "linear": ("factor",),
        "dynamic": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
        "yarn": ("factor", "beta_fast", "beta_slow", "attention_factor", "truncate"),
        "longrope": ("short_factor", "long_factor"),
    }
    if kind not in names:
        raise unsupported("rope_type", kind, "|".join(names))
    scaling = {name: parameters[name] for name in names[kind] if parameters.get(name) is not None}
    if kind in ("dynamic", "llama3", "yarn", "longrope"):
        scaling["original_context"] = context if kind == "dynamic" else original
    if kind == "yarn":
        scaling.setdefault("factor", context / original)
        if "attention_factor" not in scaling and parameters.get("mscale") and parameters.get("mscale_all_dim"):
            scaling["attention_factor"] = yarn_mscale(scaling["factor"], parameters["mscale"]) / yarn_mscale(
                scaling["factor"], parameters["mscale_all_dim"]
            )
    if kind == "longrope":
        factor = parameters.get("factor") or context / original
        usual = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        scaling["attention_factor"] = parameters.get("attention_factor") or usual
    values: Values = {"theta": parameters.get("rope_theta") or 10_000.0}
    values["fraction"] = parameters.get("partial_rotary_factor") or 1.0
    return RopeConfig.model_validate(values | ({"scaling": {"type": kind, **scaling}} if scaling else {}))


def rope_to_hf(rope: RopeConfig) -> Values:
    """Their `rope_parameters` for our rotary embedding."""
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": rope.theta}
    if rope.fraction != 1.0:
        parameters["partial_rotary_factor"] = rope.fraction
    if rope.scaling is not None:
        scaling = rope.scaling.model_dump(exclude_none=True)
        parameters["rope_type"] = scaling.pop("type")
        original = scaling.pop("original_context", None)
        if original is not None and not isinstance(rope.scaling, DynamicScaling):
            parameters["original_max_position_embeddings"] = original
        parameters |= {name: list(value) if isinstance(value, tuple) else value for name, value in scaling.items()}
    return parameters


def yarn_mscale(factor: float, weight: float) -> float:
    """YaRN's attention temperature (Peng et al. 2023, equation 22), with DeepSeek's weight."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def read_window(values: Values) -> Values:
    """One sliding window for all layers, or none."""
    return {"windows": (values.get("sliding_window"),)}


def write_window(config: DecoderConfig) -> Values:
    """The same, written out."""
    return {"sliding_window": config.window(0)}


def read_layer_types(layer_types: list[str], window: int | None) -> Values:
    """The sliding window of the layers called so.

    Raises:
        ModelError: a layer is of another type.
    """
    for layer_type in layer_types:
        if layer_type not in ("sliding_attention", "full_attention"):
            raise unsupported("layer_types", layer_type, "sliding_attention|full_attention")
    if window is None and "sliding_attention" in layer_types:
        raise ModelError(say(zh="config.json 缺少 'sliding_window'。", en="config.json lacks 'sliding_window'."))
    return {"windows": shortest([window if name == "sliding_attention" else None for name in layer_types])}


def write_layer_types(config: DecoderConfig) -> Values:
    """The same, written out; the window is that of the first layer that has one."""
    windows = [config.window(layer) for layer in range(config.layers)]
    return {
        "sliding_window": next(filter(None, windows), None),
        "layer_types": ["sliding_attention" if window else "full_attention" for window in windows],
    }


def read_optional_windows(values: Values) -> Values:
    """Qwen's way: a switch, and a number of layers or a list that says which ones slide."""
    window = values.get("sliding_window") if values.get("use_sliding_window", False) else None
    layers = values["num_hidden_layers"]
    full = values.get("max_window_layers", 28)
    usual = ["sliding_attention" if window and layer >= full else "full_attention" for layer in range(layers)]
    return read_layer_types(values.get("layer_types") or usual, window)


def write_optional_windows(config: DecoderConfig) -> Values:
    """The same, written out."""
    types = write_layer_types(config)
    sliding = types["sliding_window"] is not None
    return {**types, "use_sliding_window": sliding, "max_window_layers": config.layers}
