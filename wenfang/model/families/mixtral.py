"""Mixtral: Mistral with eight experts in every layer, two of them active."""

from wenfang.model.config import DecoderConfig
from wenfang.model.families import hf
from wenfang.model.families.family import Family, Values
from wenfang.model.families.tensor_map import Link
from wenfang.model.parts import MoeConfig


def _read(values: Values) -> Values:
    moe = {
        "experts": values["num_local_experts"],
        "active": values["num_experts_per_tok"],
        "hidden": values["intermediate_size"],
        "balance": "loss",
        "balance_rate": values.get("router_aux_loss_coef") or 0.001,
    }
    rope = hf.read_rope(values, theta=1_000_000.0)
    return {**hf.read_heads(values), **rope, **hf.read_window(values), "moe": moe}


def _write(config: DecoderConfig) -> Values:
    moe = config.moe or MoeConfig(experts=1, active=1, hidden=1)
    return {
        **hf.write_heads(config),
        **hf.write_rope(config),
        **hf.write_window(config),
        "num_local_experts": moe.experts,
        "num_experts_per_tok": moe.active,
        "intermediate_size": moe.hidden,
        "router_aux_loss_coef": moe.balance_rate,
    }


def _links(_: DecoderConfig) -> tuple[Link, ...]:
    return (
        Link("layers.*.mlp.router", "model.layers.*.block_sparse_moe.gate"),
        Link("layers.*.mlp.gate_proj.weight", "model.layers.*.block_sparse_moe.experts.#.w1.weight"),
        Link("layers.*.mlp.up_proj.weight", "model.layers.*.block_sparse_moe.experts.#.w3.weight"),
        Link("layers.*.mlp.down_proj.weight", "model.layers.*.block_sparse_moe.experts.#.w2.weight"),
        *hf.LINKS,
    )


FAMILY = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    fields=hf.FIELDS,
    defaults=hf.DEFAULTS | {"num_local_experts": 8, "num_experts_per_tok": 2},
    fixed=hf.FIXED | {"router_jitter_noise": 0.0},
    traits={"qk_norm": None},
    links=_links,
    read=_read,
    write=_write,
)
