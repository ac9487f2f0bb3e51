"""DeepSeek-V2 and V3: latent attention, and experts beside shared ones after some dense layers."""

from wenfang.model.config import DecoderConfig
from wenfang.model.families import hf
from wenfang.model.families.family import Family, Values
from wenfang.model.families.tensor_map import Link, PairedRows
from wenfang.model.parts import MlaConfig, MoeConfig

FIELDS = {**hf.FIELDS, "num_attention_heads": "heads"}
TRAITS = {"qk_norm": None}


def _read(values: Values) -> Values:
    bias = values.get("attention_bias", False)
    rope_dim, head_dim = values["qk_rope_head_dim"], values["qk_nope_head_dim"] + values["qk_rope_head_dim"]
    mla = {
        "kv_rank": values["kv_lora_rank"],
        "query_rank": values.get("q_lora_rank"),
        "rope_dim": rope_dim,
        "value_dim": values["v_head_dim"],
    }
    rope = hf.read_rope(values)
    return {
        **rope,
        "activation": hf.read_activation(values.get("hidden_act", "silu")),
        "kv_heads": values["num_attention_heads"],
        "head_dim": head_dim,
        "attention_scale": _read_scale(values, head_dim),
        "qkv_bias": bias,
        "o_bias": bias,
        "mla": mla,
    }


def _read_scale(values: Values, head_dim: int) -> float | None:
    """YaRN's temperature squared, applied to the scores rather than to queries and keys."""
    parameters = values.get("rope_parameters") or values.get("rope_scaling") or {}
    weight = parameters.get("mscale_all_dim")
    return hf.yarn_mscale(parameters["factor"], weight) ** 2 * head_dim**-0.5 if weight else None


def _write(config: DecoderConfig) -> Values:
    mla = config.mla or MlaConfig(kv_rank=1, rope_dim=2, value_dim=1)
    values = {
        **hf.write_rope(config),
        "hidden_act": hf.write_activation(config.activation),
        "num_key_value_heads": config.heads,
        "attention_bias": config.qkv_bias,
        "kv_lora_rank": mla.kv_rank,
        "q_lora_rank": mla.query_rank,
        "qk_rope_head_dim": mla.rope_dim,
        "qk_nope_head_dim": config.head_dim - mla.rope_dim,
        "v_head_dim": mla.value_dim,
    }
    rope = values["rope_parameters"]
    if config.attention_scale is not None and rope.get("factor", 1.0) > 1.0:
        mscale = (config.attention_scale * config.head_dim**0.5) ** 0.5
        rope["mscale_all_dim"] = (mscale - 1.0) / (hf.yarn_mscale(rope["factor"], 1.0) - 1.0)
    return values


def _read_experts(values: Values) -> Values:
    if values["first_k_dense_replace"] >= values["num_hidden_layers"]:
        return {}
    sparse = [layer >= values["first_k_dense_replace"] for layer in range(values["num_hidden_layers"])]
    return {
        "experts": values["n_routed_experts"],
        "active": values["num_experts_per_tok"],
        "hidden": values["moe_intermediate_size"],
        "layers": sparse,
        "shared_hidden": values["moe_intermediate_size"] * values["n_shared_experts"],
        "scale": values["routed_scaling_factor"],
        "groups": values["n_group"],
        "active_groups": values["topk_group"],
    }


def _write_experts(config: DecoderConfig) -> Values:
    moe = config.moe or MoeConfig(experts=1, active=1, hidden=1)
    dense = [layer for layer in range(config.layers) if not config.experts(layer)]
    return {
        "first_k_dense_replace": len(dense),
        "n_routed_experts": moe.experts,
        "num_experts_per_tok": moe.active,
        "moe_intermediate_size": moe.hidden,
        "n_shared_experts": moe.shared_hidden // moe.hidden,
        "routed_scaling_factor": moe.scale,
        "n_group": moe.groups,
        "topk_group": moe.active_groups,
    }


def _read_v2(values: Values) -> Values:
    limited = values.get("topk_method", "greedy") == "group_limited_greedy"
    moe = _read_experts(values if limited else {**values, "n_group": 1, "topk_group": 1})
    balance = {"normalise": False, "balance": "loss"}
    return {**_read(values), "moe": moe and {**moe, **balance}}


def _write_v2(config: DecoderConfig) -> Values:
    limited = config.moe is not None and config.moe.groups > 1
    method = {"topk_method": "group_limited_greedy" if limited else "greedy"}
    return {**_write(config), **_write_experts(config), **method, "norm_topk_prob": False}


def _read_v3(values: Values) -> Values:
    moe = _read_experts(values)
    routing = {"scores": "sigmoid", "balance": "bias", "normalise": values.get("norm_topk_prob", True)}
    return {**_read(values), "moe": moe and {**moe, **routing}, "ahead": values.get("num_nextn_predict_layers", 0)}


def _write_v3(config: DecoderConfig) -> Values:
    normalise = config.moe is None or config.moe.normalise
    return {
        **_write(config),
        **_write_experts(config),
        "norm_topk_prob": normalise,
        "num_nextn_predict_layers": config.ahead,
    }


def _links(config: DecoderConfig) -> tuple[Link, ...]:
    mla = config.mla or MlaConfig(kv_rank=1, rope_dim=2, value_dim=1)
    queries, key = PairedRows(config.heads, mla.rope_dim), PairedRows(1, mla.rope_dim)
    ours, theirs = "layers.*.mixer.", "model.layers.*.self_attn."
    block = (
        Link(ours + "q_proj", theirs + "q_proj", queries),
        Link(ours + "q_b_proj", theirs + "q_b_proj", queries),
        Link(ours + "q_a_norm", theirs + "q_a_layernorm"),
        Link(ours + "kv_a_proj", theirs + "kv_a_proj_with_mqa", key),
        Link(ours + "kv_a_norm", theirs + "kv_a_layernorm"),
        Link("layers.*.mlp.shared", "model.layers.*.mlp.shared_experts"),
        Link("layers.*.mlp.choice_bias", "model.layers.*.mlp.gate.e_score_correction_bias"),
        *hf.EXPERT_LINKS,
        *hf.LINKS,
    )
    return (*_ahead_links(config, block), *block)


def _ahead_links(config: DecoderConfig, block: tuple[Link, ...]) -> list[Link]:
    """Multi-token prediction stands after the last layer, as further layers."""
    links = []
    for depth in range(config.ahead):
        ours, theirs = f"ahead.{depth}.", f"model.layers.{config.layers + depth}."
        links += [
            Link(ours + "embedding_norm", theirs + "enorm"),
            Link(ours + "state_norm", theirs + "hnorm"),
            Link(ours + "join_proj", theirs + "eh_proj"),
            Link(ours + "norm", theirs + "shared_head.norm"),
        ]
        links += [
            Link(
                str(link.ours).replace("layers.*.", ours + "block."),
                link.theirs.replace("model.layers.*.", theirs),
                link.layout,
            )
            for link in block
        ]
    return links


_DEFAULTS = hf.DEFAULTS | {"n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0, "first_k_dense_replace": 0}
V2 = Family(
    model_type="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    fields=FIELDS | {"mlp_bias": "mlp_bias"},
    defaults=_DEFAULTS | {"mlp_bias": False},
    fixed=hf.FIXED | {"norm_topk_prob": False},
    traits=TRAITS,
    links=_links,
    read=_read_v2,
    write=_write_v2,
)
V3 = Family(
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    fields=FIELDS,
    defaults=_DEFAULTS | {"routed_scaling_factor": 2.5, "first_k_dense_replace": 3, "n_group": 8, "topk_group": 4},
    fixed=hf.FIXED | {"rope_interleave": True},
    traits=TRAITS,
    links=_links,
    read=_read_v3,
    write=_write_v3,
    ignored=(r"model\.layers\.\d+\.(embed_tokens|shared_head\.head)\.weight",),
)
