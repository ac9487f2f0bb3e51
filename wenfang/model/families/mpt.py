"""MPT: ALiBi, LayerNorm, no bias anywhere, queries, keys and values fused and perhaps clamped."""

from wenfang.model.config import DecoderConfig
from wenfang.model.families.family import Family, Values, unsupported
from wenfang.model.families.tensor_map import Link

ATTENTION = {"alibi": True, "alibi_bias_max": 8, "qk_ln": False, "prefix_lm": False, "attn_type": "multihead_attention"}


def _read(values: Values) -> Values:
    dim, heads, attention = values["d_model"], values["n_heads"], values.get("attn_config", {})
    for name, expected in ATTENTION.items():
        if attention.get(name, expected) != expected:
            raise unsupported(f"attn_config.{name}", attention[name], expected)
    return {
        "kv_heads": heads,
        "head_dim": dim // heads,
        "hidden": 4 * dim,
        "qkv_clip": attention.get("clip_qkv"),
        "attention_scale": attention.get("softmax_scale"),
    }


def _write(config: DecoderConfig) -> Values:
    attention = {"clip_qkv": config.qkv_clip, "softmax_scale": config.attention_scale}
    return {"attn_config": {**ATTENTION, **attention}}


def _links(_: DecoderConfig) -> tuple[Link, ...]:
    ours, theirs = "layers.*.", "transformer.blocks.*."
    return (
        Link("lm_head", "lm_head"),
        Link("embed_tokens", "transformer.wte"),
        Link(ours + "mixer_norm", theirs + "norm_1"),
        Link((ours + "mixer.q_proj", ours + "mixer.k_proj", ours + "mixer.v_proj"), theirs + "attn.Wqkv"),
        Link(ours + "mixer.o_proj", theirs + "attn.out_proj"),
        Link(ours + "mlp_norm", theirs + "norm_2"),
        Link(ours + "mlp", theirs + "ffn"),
        Link("norm", "transformer.norm_f"),
    )


FAMILY = Family(
    model_type="mpt",
    architecture="MptForCausalLM",
    fields={
        "vocab_size": "vocab_size",
        "d_model": "dim",
        "n_layers": "layers",
        "n_heads": "heads",
        "max_seq_len": "context",
        "layer_norm_epsilon": "norm_eps",
        "tie_word_embeddings": "tie_embeddings",
    },
    defaults={"tie_word_embeddings": True, "layer_norm_epsilon": 1e-5},
    fixed={"no_bias": True, "expansion_ratio": 4},
    traits={
        "ropes": (None,), "alibi": True, "qk_norm": None, "norm": "layer", "activation": "gelu", "gated": False,
    },
    links=_links,
    read=_read,
    write=_write,
)  # fmt: skip
