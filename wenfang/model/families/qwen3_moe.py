"""Qwen3 with experts in every layer, every few layers, or all but some."""

from wenfang.model.config import DecoderConfig
from wenfang.model.families import hf
from wenfang.model.families.family import Family, Values, shortest
from wenfang.model.parts import MoeConfig


def _read(values: Values) -> Values:
    bias = values.get("attention_bias", False)
    window = values.get("sliding_window") if values.get("use_sliding_window", False) else None
    layers = range(values["num_hidden_layers"])
    values = {"num_local_experts": values.get("num_experts", 128), **values}
    every, dense = values.get("decoder_sparse_step", 1), values.get("mlp_only_layers", [])
    moe = {
        "experts": values["num_local_experts"],
        "active": values["num_experts_per_tok"],
        "hidden": values["moe_intermediate_size"],
        "layers": shortest([layer not in dense and (layer + 1) % every == 0 for layer in layers]),
        "normalise": values.get("norm_topk_prob", False),
        "balance": "loss",
        "balance_rate": values.get("router_aux_loss_coef") or 0.001,
    }
    return {
        **hf.read_heads(values),
        **hf.read_rope(values),
        "windows": (window,),
        "qkv_bias": bias,
        "o_bias": bias,
        "moe": moe,
    }


def _write(config: DecoderConfig) -> Values:
    moe = config.moe or MoeConfig(experts=1, active=1, hidden=1)
    window = config.window(0)
    return {
        **hf.write_heads(config),
        **hf.write_rope(config),
        "sliding_window": window,
        "use_sliding_window": window is not None,
        "attention_bias": config.qkv_bias,
        "num_local_experts": moe.experts,
        "num_experts_per_tok": moe.active,
        "moe_intermediate_size": moe.hidden,
        "mlp_only_layers": [layer for layer in range(config.layers) if not config.experts(layer)],
        "norm_topk_prob": moe.normalise,
        "router_aux_loss_coef": moe.balance_rate,
    }


FAMILY = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    fields=hf.FIELDS,
    defaults=hf.DEFAULTS | {"num_experts_per_tok": 8, "moe_intermediate_size": 768},
    fixed=hf.FIXED,
    traits={"qk_norm": "head"},
    links=hf.expert_links,
    read=_read,
    write=_write,
)
