"""Mamba-2: blocks of one mixer each, no feed-forward, no positions."""

import math

from wenfang.model.config import DecoderConfig
from wenfang.model.families.family import Family, Values, unsupported
from wenfang.model.families.tensor_map import Link

UNLIMITED = 1 << 20
"""Context where the file names none: the state has the same size at any length."""


def _read(values: Values) -> Values:
    limit = values.get("time_step_limit", (0.0, math.inf))
    if (isinstance(limit, list | tuple) and float(limit[0]) > 0) or "inf" not in str(limit).lower():
        raise unsupported("time_step_limit", limit, (0.0, math.inf))
    if values["expand"] * values["hidden_size"] != values["num_heads"] * values["head_dim"]:
        raise unsupported("expand", values["expand"], values["num_heads"] * values["head_dim"] / values["hidden_size"])
    return {
        "context": values.get("max_position_embeddings", UNLIMITED),
        "mamba2": {
            "heads": values["num_heads"],
            "head_dim": values["head_dim"],
            "state_dim": values["state_size"],
            "groups": values["n_groups"],
            "conv_width": values["conv_kernel"],
            "conv_bias": values["use_conv_bias"],
            "chunk": values["chunk_size"],
        },
    }


def _write(config: DecoderConfig) -> Values:
    mamba2 = config.mamba2
    return {
        "max_position_embeddings": config.context,
        "expand": mamba2.heads * mamba2.head_dim // config.dim,
        "num_heads": mamba2.heads,
        "head_dim": mamba2.head_dim,
        "state_size": mamba2.state_dim,
        "n_groups": mamba2.groups,
        "conv_kernel": mamba2.conv_width,
        "use_conv_bias": mamba2.conv_bias,
        "chunk_size": mamba2.chunk,
    }


def _links(_: DecoderConfig) -> tuple[Link, ...]:
    ours, theirs = "layers.*.", "backbone.layers.*."
    return (
        Link("lm_head", "lm_head"),
        Link("embed_tokens", "backbone.embeddings"),
        Link(ours + "mixer_norm", theirs + "norm"),
        Link(ours + "mixer.norm_weight", theirs + "mixer.norm.weight"),
        Link(ours + "mixer.o_proj", theirs + "mixer.out_proj"),
        Link(ours + "mixer", theirs + "mixer"),
        Link("norm", "backbone.norm_f"),
    )


FAMILY = Family(
    model_type="mamba2",
    architecture="Mamba2ForCausalLM",
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "dim",
        "num_hidden_layers": "layers",
        "layer_norm_epsilon": "norm_eps",
        "tie_word_embeddings": "tie_embeddings",
    },
    defaults={
        "layer_norm_epsilon": 1e-5, "tie_word_embeddings": False, "expand": 2, "n_groups": 8, "conv_kernel": 4,
        "use_conv_bias": True, "chunk_size": 256, "state_size": 128, "head_dim": 64,
    },
    fixed={"use_bias": False, "hidden_act": "silu"},
    traits={"mixers": ("mamba2",), "ropes": (None,), "hidden": 0},
    links=_links,
    read=_read,
    write=_write,
)  # fmt: skip
