"""Qwen3-Next: three gated DeltaNet layers to one of gated attention, experts in most feed-forwards."""

from collections.abc import Iterator

from wenfang.model.config import DecoderConfig
from wenfang.model.families import hf
from wenfang.model.families.family import Family, Values, shortest, unsupported
from wenfang.model.families.tensor_map import HeadRows, Link
from wenfang.model.parts import MoeConfig

MIXERS = {"linear_attention": "gated_deltanet", "full_attention": "attention"}


def _read(values: Values) -> Values:
    layers, every = range(values["num_hidden_layers"]), values.get("full_attention_interval", 4)
    usual = ["linear_attention" if (layer + 1) % every else "full_attention" for layer in layers]
    types = values.get("layer_types", usual)
    for layer_type in types:
        if layer_type not in MIXERS:
            raise unsupported("layer_types", layer_type, "|".join(MIXERS))
    linear = {
        "key_heads": values["linear_num_key_heads"],
        "value_heads": values["linear_num_value_heads"],
        "key_dim": values["linear_key_head_dim"],
        "value_dim": values["linear_value_head_dim"],
        "conv_width": values["linear_conv_kernel_dim"],
    }
    return {
        **hf.read_heads(values),
        **hf.read_rope({"partial_rotary_factor": 0.25, **values}),
        "mixers": shortest([MIXERS[layer_type] for layer_type in types]),
        "gated_deltanet": linear,
        "moe": _read_experts(values),
    }


def _read_experts(values: Values) -> Values | None:
    every, dense = values["decoder_sparse_step"], values.get("mlp_only_layers", [])
    layers = range(values["num_hidden_layers"])
    sparse = [layer not in dense and (layer + 1) % every == 0 for layer in layers]
    if not values["num_experts"] or not any(sparse):
        return None
    return {
        "experts": values["num_experts"],
        "active": values["num_experts_per_tok"],
        "hidden": values["moe_intermediate_size"],
        "layers": shortest(sparse),
        "shared_hidden": values["shared_expert_intermediate_size"],
        "shared_gate": True,
        "normalise": values["norm_topk_prob"],
        "balance": "loss",
        "balance_rate": values.get("router_aux_loss_coef") or 0.001,
    }


def _write(config: DecoderConfig) -> Values:
    layers, linear, moe = (
        range(config.layers),
        config.gated_deltanet,
        config.moe or MoeConfig(experts=1, active=1, hidden=1),
    )
    rope = hf.write_rope(config)
    return {
        **hf.write_heads(config),
        **rope,
        "partial_rotary_factor": rope["rope_parameters"].setdefault("partial_rotary_factor", 1.0),
        "layer_types": [
            "full_attention" if layer in config.attention_layers else "linear_attention" for layer in layers
        ],
        "linear_num_key_heads": linear.key_heads,
        "linear_num_value_heads": linear.value_heads,
        "linear_key_head_dim": linear.key_dim,
        "linear_value_head_dim": linear.value_dim,
        "linear_conv_kernel_dim": linear.conv_width,
        "num_experts": moe.experts,
        "num_experts_per_tok": moe.active,
        "moe_intermediate_size": moe.hidden,
        "shared_expert_intermediate_size": moe.shared_hidden,
        "mlp_only_layers": [layer for layer in layers if not config.experts(layer)],
        "norm_topk_prob": moe.normalise,
        "router_aux_loss_coef": moe.balance_rate,
    }


def _links(config: DecoderConfig) -> Iterator[Link]:
    for layer in range(config.layers):
        if config.mixer(layer) == "gated_deltanet":
            yield from _linear_links(config, f"layers.{layer}.mixer.", f"model.layers.{layer}.linear_attn.")
    ours, theirs = "layers.*.", "model.layers.*."
    yield Link((ours + "mixer.q_proj", ours + "mixer.gate_proj"), theirs + "self_attn.q_proj", HeadRows(config.heads))
    yield Link(ours + "mlp.shared_gate", theirs + "mlp.shared_expert_gate")
    yield Link(ours + "mlp.shared", theirs + "mlp.shared_expert")
    yield from hf.expert_links(config)


def _linear_links(config: DecoderConfig, ours: str, theirs: str) -> Iterator[Link]:
    by_key_head = HeadRows(config.gated_deltanet.key_heads)
    yield Link(tuple(f"{ours}{name}_proj" for name in "qkvz"), theirs + "in_proj_qkvz", by_key_head)
    yield Link((ours + "beta_proj", ours + "alpha_proj"), theirs + "in_proj_ba", by_key_head)
    yield Link(ours + "norm_weight", theirs + "norm.weight")
    yield Link(ours + "o_proj", theirs + "out_proj")
    yield from (Link(ours + name, theirs + name) for name in ("conv1d", "A_log", "dt_bias"))


FAMILY = Family(
    model_type="qwen3_next",
    architecture="Qwen3NextForCausalLM",
    fields=hf.FIELDS,
    defaults=hf.DEFAULTS | {
        "num_key_value_heads": 2, "head_dim": 256, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
        "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4,
        "decoder_sparse_step": 1, "num_experts": 512, "num_experts_per_tok": 10, "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512, "norm_topk_prob": True,
    },
    fixed=hf.FIXED | {"attention_bias": False},
    traits={"qk_norm": "head", "norm_offset": True, "attention_gate": True},
    links=lambda config: tuple(_links(config)),
    read=_read,
    write=_write,
    ignored=(r"mtp\..*",),
)  # fmt: skip
