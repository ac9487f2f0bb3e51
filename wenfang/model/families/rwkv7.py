"""RWKV-7 in the Hugging Face layout of flash-linear-attention, whose class opens it; `transformers` alone has none."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wenfang.model.config import DecoderConfig
from wenfang.model.families.family import Family, Values, unsupported
from wenfang.model.families.mamba2 import UNLIMITED
from wenfang.model.families.tensor_map import Link
from wenfang.model.mixers.rwkv7 import SHIFTED


@dataclass(frozen=True)
class Lifted:
    """A vector of ours with two leading dimensions of size one."""

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return parts[0][None, None]

    def split(self, whole: Tensor, shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
        return [whole[0, 0]]


def _read(values: Values) -> Values:
    dim, head_dim = values["hidden_size"], values["head_dim"]
    value_dim = values.get("value_dim", dim)
    if value_dim not in (dim, [dim] * values["num_hidden_layers"]):
        raise unsupported("value_dim", value_dim, dim)
    hidden = values.get("intermediate_size", 32 * -(-int(dim * values.get("hidden_ratio", 4.0)) // 32))
    return {
        "hidden": hidden,
        "rwkv7": {
            "heads": dim // head_dim,
            "head_dim": head_dim,
            "decay_rank": values["decay_low_rank_dim"],
            "rate_rank": values["a_low_rank_dim"],
            "value_rank": values["v_low_rank_dim"],
            "gate_rank": values["gate_low_rank_dim"],
            "norm_eps": head_dim * values["norm_eps"],
        },
    }


def _write(config: DecoderConfig) -> Values:
    rwkv7 = config.rwkv7
    return {
        "intermediate_size": config.hidden,
        "hidden_ratio": config.hidden / config.dim,
        "head_dim": rwkv7.head_dim,
        "num_heads": rwkv7.heads,
        "value_dim": [rwkv7.heads * rwkv7.head_dim] * config.layers,
        "decay_low_rank_dim": rwkv7.decay_rank,
        "a_low_rank_dim": rwkv7.rate_rank,
        "v_low_rank_dim": rwkv7.value_rank,
        "gate_low_rank_dim": rwkv7.gate_rank,
    }


def _links(_: DecoderConfig) -> Iterator[Link]:
    ours, theirs = "layers.*.", "model.layers.*."
    yield Link("lm_head", "lm_head")
    yield Link("embed_tokens", "model.embeddings")
    yield Link("embed_norm", "model.layers.0.pre_norm")
    yield Link("norm", "model.norm")
    yield Link(ours + "mixer_norm", theirs + "attn_norm")
    yield Link(ours + "mlp_norm", theirs + "ffn_norm")
    yield Link(ours + "mlp.shift", theirs + "ffn.x_k")
    yield Link(ours + "mlp.up_proj", theirs + "ffn.key")
    yield Link(ours + "mlp.down_proj", theirs + "ffn.value")
    for name in SHIFTED:
        yield Link(f"{ours}mixer.shifts.{name}", f"{theirs}attn.x_{name}", Lifted())
    for name in ("decay", "rate", "value", "gate"):
        low_rank = {"decay": "w", "rate": "a", "value": "v", "gate": "g"}[name] + "_lora.lora."
        yield Link(f"{ours}mixer.{name}.down", f"{theirs}attn.{low_rank}0")
        yield Link(f"{ours}mixer.{name}.up", f"{theirs}attn.{low_rank}2")
        yield Link(f"{ours}mixer.{name}.bias", f"{theirs}attn.{low_rank}2.bias")
    yield Link(ours + "mixer.norm_weight", theirs + "attn.g_norm.weight")
    yield Link(ours + "mixer.norm_bias", theirs + "attn.g_norm.bias")
    yield Link(ours + "mixer", theirs + "attn")


FAMILY = Family(
    model_type="rwkv7",
    architecture="RWKV7ForCausalLM",
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "dim",
        "num_hidden_layers": "layers",
        "max_position_embeddings": "context",
        "norm_eps": "norm_eps",
        "tie_word_embeddings": "tie_embeddings",
    },
    defaults={
        "norm_eps": 1e-5, "tie_word_embeddings": False, "max_position_embeddings": UNLIMITED, "head_dim": 64,
    },
    fixed={"norm_bias": True, "norm_first": True, "hidden_act": "sqrelu"},
    traits={
        "mixers": ("rwkv7",), "ropes": (None,), "norm": "layer", "norm_bias": True, "embedding_norm": True,
        "token_shift": True, "activation": "relu2", "gated": False,
    },
    links=lambda config: tuple(_links(config)),
    read=_read,
    write=_write,
)  # fmt: skip
