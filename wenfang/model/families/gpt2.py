"""GPT-2: learned positions, LayerNorm, biases everywhere, matrices lying on their side."""

from wenfang.model.config import DecoderConfig
from wenfang.model.families import hf
from wenfang.model.families.family import Family, Values
from wenfang.model.families.tensor_map import Link, Rows


def _read(values: Values) -> Values:
    heads = values["n_head"]
    return {
        "kv_heads": heads,
        "head_dim": values["n_embd"] // heads,
        "hidden": values.get("n_inner", 4 * values["n_embd"]),
        "activation": hf.read_activation(values["activation_function"]),
    }


def _write(config: DecoderConfig) -> Values:
    return {"n_inner": config.hidden, "activation_function": hf.write_activation(config.activation)}


def _links(_: DecoderConfig) -> tuple[Link, ...]:
    ours, theirs, lying = "layers.*.", "transformer.h.*.", Rows(transposed=True)
    return (
        Link("lm_head", "lm_head"),
        Link("embed_tokens", "transformer.wte"),
        Link("embed_positions", "transformer.wpe"),
        Link(ours + "mixer_norm", theirs + "ln_1"),
        Link((ours + "mixer.q_proj", ours + "mixer.k_proj", ours + "mixer.v_proj"), theirs + "attn.c_attn", lying),
        Link(ours + "mixer.o_proj", theirs + "attn.c_proj", lying),
        Link(ours + "mlp_norm", theirs + "ln_2"),
        Link(ours + "mlp.up_proj", theirs + "mlp.c_fc", lying),
        Link(ours + "mlp.down_proj", theirs + "mlp.c_proj", lying),
        Link("norm", "transformer.ln_f"),
    )


FAMILY = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    fields={
        "vocab_size": "vocab_size",
        "n_embd": "dim",
        "n_layer": "layers",
        "n_head": "heads",
        "n_positions": "context",
        "layer_norm_epsilon": "norm_eps",
        "tie_word_embeddings": "tie_embeddings",
    },
    defaults={"tie_word_embeddings": True, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5},
    fixed={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    traits={
        "ropes": (None,), "absolute_positions": "learned", "qk_norm": None, "norm": "layer", "norm_bias": True,
        "gated": False, "qkv_bias": True, "o_bias": True, "mlp_bias": True,
    },
    links=_links,
    read=_read,
    write=_write,
    ignored=(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias",),
)  # fmt: skip
