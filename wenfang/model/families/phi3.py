"""Phi-3 and Phi-4: Llama with fused projections, partial rotary embedding and LongRoPE."""

from wenfang.model.config import DecoderConfig
from wenfang.model.families import hf
from wenfang.model.families.family import Family, Values
from wenfang.model.families.tensor_map import Link

ATTENTION, MLP = "layers.*.mixer.", "layers.*.mlp."


def _read(values: Values) -> Values:
    values = {name: value for name, value in values.items() if name != "head_dim"}
    return {**hf.read_heads(values), **hf.read_rope(values), **hf.read_window(values)}


def _write(config: DecoderConfig) -> Values:
    values = {**hf.write_heads(config), **hf.write_rope(config), **hf.write_window(config)}
    rope = values["rope_parameters"]
    rope.setdefault("partial_rotary_factor", 1.0)
    values["original_max_position_embeddings"] = rope.get("original_max_position_embeddings", config.context)
    return values


def _links(_: DecoderConfig) -> tuple[Link, ...]:
    qkv = (ATTENTION + "q_proj", ATTENTION + "k_proj", ATTENTION + "v_proj")
    return (
        Link(qkv, "model.layers.*.self_attn.qkv_proj"),
        Link((MLP + "gate_proj", MLP + "up_proj"), "model.layers.*.mlp.gate_up_proj"),
        *hf.LINKS,
    )


FAMILY = Family(
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    fields=hf.FIELDS,
    defaults=hf.DEFAULTS | {"rms_norm_eps": 1e-5},
    fixed=hf.FIXED | {"resid_pdrop": 0.0, "embd_pdrop": 0.0},
    traits={"qk_norm": None},
    links=_links,
    read=_read,
    write=_write,
)
