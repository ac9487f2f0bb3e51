"""BLOOM: ALiBi, normalised embeddings, queries, keys and values fused head by head."""

from wenfang.model.config import DecoderConfig
from wenfang.model.families.family import Family, Values
from wenfang.model.families.tensor_map import HeadRows, Link


def _read(values: Values) -> Values:
    dim, heads = values["hidden_size"], values["n_head"]
    return {"kv_heads": heads, "head_dim": dim // heads, "hidden": 4 * dim}


def _links(config: DecoderConfig) -> tuple[Link, ...]:
    ours, theirs = "layers.*.", "transformer.h.*."
    qkv = (ours + "mixer.q_proj", ours + "mixer.k_proj", ours + "mixer.v_proj")
    return (
        Link("lm_head", "lm_head"),
        Link("embed_tokens", "transformer.word_embeddings"),
        Link("embed_norm", "transformer.word_embeddings_layernorm"),
        Link(ours + "mixer_norm", theirs + "input_layernorm"),
        Link(qkv, theirs + "self_attention.query_key_value", HeadRows(config.heads)),
        Link(ours + "mixer.o_proj", theirs + "self_attention.dense"),
        Link(ours + "mlp_norm", theirs + "post_attention_layernorm"),
        Link(ours + "mlp.up_proj", theirs + "mlp.dense_h_to_4h"),
        Link(ours + "mlp.down_proj", theirs + "mlp.dense_4h_to_h"),
        Link("norm", "transformer.ln_f"),
    )


FAMILY = Family(
    model_type="bloom",
    architecture="BloomForCausalLM",
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "dim",
        "n_layer": "layers",
        "n_head": "heads",
        "seq_length": "context",
        "layer_norm_epsilon": "norm_eps",
        "tie_word_embeddings": "tie_embeddings",
    },
    defaults={"tie_word_embeddings": True, "layer_norm_epsilon": 1e-5, "seq_length": 2048},
    fixed={"apply_residual_connection_post_layernorm": False},
    traits={
        "ropes": (None,), "alibi": True, "qk_norm": None, "norm": "layer", "norm_bias": True, "embedding_norm": True,
        "activation": "gelu_tanh", "gated": False, "qkv_bias": True, "o_bias": True, "mlp_bias": True,
    },
    links=_links,
    read=_read,
)  # fmt: skip
