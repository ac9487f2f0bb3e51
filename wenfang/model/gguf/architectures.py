"""What llama.cpp calls the architectures that Hugging Face families hold, and the keys that describe each."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from wenfang.core.errors import ModelError
from wenfang.core.language import say
from wenfang.model.config import DecoderConfig
from wenfang.model.families import FAMILIES, Family
from wenfang.model.families.family import Values, unsupported
from wenfang.model.families.tensor_map import Link
from wenfang.model.gguf import links
from wenfang.model.gguf.header import GGUFFile
from wenfang.model.gguf.rope import FACTORS, LONG, SHORT

COMMON = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
"""Keys after the architecture's prefix, and the field of `config.json` that each one holds."""
EXPERTS = {
    "expert_count": "num_local_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}


def _head_widths(keys: Values) -> Values:
    """Values as wide as keys, which are rotated whole."""
    width = keys.get("attention.key_length", keys["embedding_length"] // keys["attention.head_count"])
    return {"attention.value_length": width, "rope.dimension_count": width}


def _nothing(_: Values) -> Values:
    return {}


def _always(_: Values) -> bool:
    return True


def _sparse(keys: Values) -> bool:
    return bool(keys.get("expert_count"))


def _dense(keys: Values) -> bool:
    return not _sparse(keys)


@dataclass(frozen=True)
class Architecture:
    """One architecture of llama.cpp and the Hugging Face families it stands for."""

    name: str
    """What the file says, and the prefix of its keys."""
    model_types: tuple[str, ...]
    """What `config.json` says: the first is what a file is read as, the others are written as it where it can be."""
    links: Callable[[DecoderConfig], Sequence[Link]]
    """Names and layouts of the tensors."""
    fields: Mapping[str, str]
    """Keys, and the field of `config.json` that each one holds."""
    fixed: Callable[[Values], Values] = _head_widths
    """Further keys, from the others: written so, and refused where a file says otherwise."""
    known: Callable[[Values], Values] = _nothing
    """Fields of `config.json` that llama.cpp takes for granted, from those the keys gave."""
    when: Callable[[Values], bool] = _always
    """Which files of this name it stands for, by their keys."""
    scaled: bool = False
    """Whether rotary embeddings may be scaled by keys."""
    factors: tuple[str, ...] = ()
    """Tensors of factors that they may be scaled by."""
    copies: Mapping[str, str] = field(default_factory=dict)
    """Tensors that llama.cpp wants and nobody reads, and what they are filled from."""

    @property
    def prefix(self) -> str:
        """What the keys of this architecture begin with."""
        return self.name + "."

    @property
    def family(self) -> Family:
        """The family it is read as, with llama.cpp's names of tensors."""
        besides = tuple(map(re.escape, (*self.copies, *self.factors)))
        return replace(FAMILIES[self.model_types[0]], links=self.links, ignored=besides)


def _square(values: Values) -> Values:
    """Heads that together are as wide as the model, whatever the key says."""
    return {"head_dim": values["hidden_size"] // values["num_attention_heads"]}


def _gemma_scale(values: Values, largest: int) -> Values:
    """llama.cpp knows the 27B models by their layers; those scale by the width of the model, not of the head."""
    square = values["num_hidden_layers"] == largest
    return {"query_pre_attn_scalar": (_square(values) if square else values)["head_dim"]}


def _gemma2(values: Values) -> Values:
    return _gemma_scale(values, largest=46)


def _gemma3(values: Values) -> Values:
    everywhere = values["rope_parameters"]
    if everywhere["rope_type"] not in ("default", "linear"):  # llama.cpp would scale sliding layers too.
        raise unsupported("rope_type", everywhere["rope_type"], "default|linear")
    sliding = {"rope_type": "default", "rope_theta": 10_000.0}
    ropes = {"full_attention": everywhere, "sliding_attention": sliding}
    return _gemma_scale(values, largest=62) | {"rope_parameters": ropes}


def _phi3_fixed(keys: Values) -> Values:
    # llama.cpp reads the window and attends to everything: a model that has one is not written.
    return {"attention.value_length": _head_widths(keys)["attention.value_length"], "attention.sliding_window": 0}


def _phi3(values: Values) -> Values:
    heads = _square(values)
    rotated = values.get("rope_width", heads["head_dim"]) / heads["head_dim"]
    return heads | {"partial_rotary_factor": rotated, "sliding_window": values.get("sliding_window") or None}


def _heads_and_hidden(keys: Values) -> Values:
    heads, width = keys["attention.head_count"], keys["embedding_length"]
    return {"attention.head_count_kv": heads, "feed_forward_length": 4 * width}


def _mpt_fixed(keys: Values) -> Values:
    return _heads_and_hidden(keys) | {"attention.max_alibi_bias": 8.0}


def _mpt(values: Values) -> Values:
    return {"attn_config": {"clip_qkv": values.get("clip_qkv")}}


def _mamba2_fixed(_: Values) -> Values:
    return {"feed_forward_length": 0, "attention.head_count": 0}


def _mamba2(values: Values) -> Values:
    inner = values.get("inner", values["hidden_size"])
    return {"head_dim": inner // values["num_heads"], "expand": inner // values["hidden_size"]}


def _deepseek2_fixed(keys: Values) -> Values:
    return {"attention.head_count_kv": keys["attention.head_count"], "expert_gating_func": SOFTMAX}


def _deepseek3_fixed(keys: Values) -> Values:
    return {"attention.head_count_kv": keys["attention.head_count"], "expert_gating_func": SIGMOID}


def _deepseek2(values: Values) -> Values:
    groups = {"topk_method": "group_limited_greedy" if values.get("n_group", 1) > 1 else "greedy"}
    return groups | {"qk_nope_head_dim": values["head_dim"] - values["qk_rope_head_dim"]}


def _rwkv7(values: Values) -> Values:
    if not math.isclose(values["head_dim"] * values["norm_eps"], RWKV7_EPS, rel_tol=1e-4):
        raise unsupported("head_dim · norm_eps", values["head_dim"] * values["norm_eps"], RWKV7_EPS)
    return {}


def _qwen3_next_fixed(_: Values) -> Values:
    return {}


def _qwen3_next(values: Values) -> Values:
    return {
        "linear_value_head_dim": values["inner"] // values["linear_num_value_heads"],
        "partial_rotary_factor": values["rope_width"] / values["head_dim"],
        "decoder_sparse_step": 1,
        "norm_topk_prob": True,
    }


SOFTMAX, SIGMOID = 1, 2
"""How experts are scored (`expert_gating_func`)."""
RWKV7_EPS = 64e-5
"""What llama.cpp adds to the variance of each head's output."""
DEEPSEEK = {
    **{key: name for key, name in COMMON.items() if key != "attention.head_count_kv"},
    "attention.value_length": "v_head_dim",
    "attention.q_lora_rank": "q_lora_rank",
    "attention.kv_lora_rank": "kv_lora_rank",
    "rope.dimension_count": "qk_rope_head_dim",
    "leading_dense_block_count": "first_k_dense_replace",
    "expert_count": "n_routed_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_shared_count": "n_shared_experts",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_weights_scale": "routed_scaling_factor",
    "expert_weights_norm": "norm_topk_prob",
    "expert_group_count": "n_group",
    "expert_group_used_count": "topk_group",
}
ARCHITECTURES = (
    Architecture("llama", ("llama", "mistral"), links.llama, COMMON, when=_dense, scaled=True, factors=(FACTORS,)),
    Architecture(
        "llama",
        ("mixtral",),
        links.llama,
        COMMON | {key: EXPERTS[key] for key in ("expert_count", "expert_used_count")},
        when=_sparse,
        scaled=True,
        factors=(FACTORS,),
    ),
    Architecture("qwen3", ("qwen3",), links.qwen, COMMON, scaled=True),
    Architecture("qwen2", ("qwen2",), links.qwen, COMMON, known=_square, scaled=True),
    Architecture("qwen3moe", ("qwen3_moe",), links.qwen, COMMON | EXPERTS, known=lambda _: {"norm_topk_prob": True}),
    Architecture("smollm3", ("smollm3",), links.llama, COMMON, scaled=True),
    Architecture("olmo2", ("olmo2",), links.olmo2, COMMON, known=_square, scaled=True),
    Architecture(
        "phi3",
        ("phi3",),
        links.phi3,
        COMMON | {"attention.sliding_window": "sliding_window", "rope.dimension_count": "rope_width"},
        fixed=_phi3_fixed,
        known=_phi3,
        scaled=True,
        factors=(LONG, SHORT),
    ),
    Architecture(
        "gemma2",
        ("gemma2",),
        links.gemma,
        COMMON
        | {
            "attention.sliding_window": "sliding_window",
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        known=_gemma2,
    ),
    Architecture(
        "gemma3",
        ("gemma3_text",),
        links.gemma,
        COMMON | {"attention.sliding_window": "sliding_window"},
        known=_gemma3,
        scaled=True,
    ),
    Architecture(
        "gpt2",
        ("gpt2",),
        links.fused,
        {
            "context_length": "n_positions",
            "embedding_length": "n_embd",
            "block_count": "n_layer",
            "feed_forward_length": "n_inner",
            "attention.head_count": "n_head",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
        fixed=_nothing,
    ),
    Architecture(
        "bloom",
        ("bloom",),
        links.fused,
        {
            "context_length": "seq_length",
            "embedding_length": "hidden_size",
            "block_count": "n_layer",
            "attention.head_count": "n_head",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
        fixed=_heads_and_hidden,
    ),
    Architecture(
        "mpt",
        ("mpt",),
        links.fused,
        {
            "context_length": "max_seq_len",
            "embedding_length": "d_model",
            "block_count": "n_layers",
            "attention.head_count": "n_heads",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
            "attention.clamp_kqv": "clip_qkv",
        },
        fixed=_mpt_fixed,
        known=_mpt,
    ),
    Architecture(
        "mamba2",
        ("mamba2",),
        links.mamba2,
        {
            "context_length": "max_position_embeddings",
            "embedding_length": "hidden_size",
            "block_count": "num_hidden_layers",
            "attention.layer_norm_rms_epsilon": "layer_norm_epsilon",
            "ssm.conv_kernel": "conv_kernel",
            "ssm.inner_size": "inner",
            "ssm.state_size": "state_size",
            "ssm.time_step_rank": "num_heads",
            "ssm.group_count": "n_groups",
        },
        fixed=_mamba2_fixed,
        known=_mamba2,
    ),
    Architecture(
        "deepseek2",
        ("deepseek_v2",),
        links.deepseek2,
        DEEPSEEK,
        fixed=_deepseek2_fixed,
        known=_deepseek2,
        when=lambda keys: keys.get("expert_gating_func", SOFTMAX) == SOFTMAX,
        scaled=True,
    ),
    Architecture(
        "deepseek2",
        ("deepseek_v3",),
        links.deepseek2,
        DEEPSEEK,
        fixed=_deepseek3_fixed,
        known=_deepseek2,
        when=lambda keys: keys.get("expert_gating_func") == SIGMOID,
        scaled=True,
    ),
    Architecture(
        "rwkv7",
        ("rwkv7",),
        links.rwkv7,
        {
            "context_length": "max_position_embeddings",
            "embedding_length": "hidden_size",
            "block_count": "num_hidden_layers",
            "feed_forward_length": "intermediate_size",
            "attention.layer_norm_epsilon": "norm_eps",
            "wkv.head_size": "head_dim",
            "attention.decay_lora_rank": "decay_low_rank_dim",
            "attention.iclr_lora_rank": "a_low_rank_dim",
            "attention.value_residual_mix_lora_rank": "v_low_rank_dim",
            "attention.gate_lora_rank": "gate_low_rank_dim",
        },
        fixed=lambda _: {"attention.head_count": 0},
        known=_rwkv7,
        copies={f"blk.0.time_mix_v{n}.weight": f"blk.0.time_mix_a{n}.weight" for n in range(3)},
    ),
    Architecture(
        "qwen3next",
        ("qwen3_next",),
        links.qwen3_next,
        COMMON
        | EXPERTS
        | {
            "expert_count": "num_experts",
            "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
            "attention.value_length": "value_width",
            "rope.dimension_count": "rope_width",
            "full_attention_interval": "full_attention_interval",
            "ssm.conv_kernel": "linear_conv_kernel_dim",
            "ssm.state_size": "linear_key_head_dim",
            "ssm.group_count": "linear_num_key_heads",
            "ssm.time_step_rank": "linear_num_value_heads",
            "ssm.inner_size": "inner",
        },
        fixed=_qwen3_next_fixed,
        known=_qwen3_next,
    ),
)


def architecture_of(file: GGUFFile) -> Architecture:
    """The architecture a file says it holds.

    Raises:
        ModelError: it is not one of ours.
    """
    name = str(file.value("general.architecture"))
    keys = {key.removeprefix(name + "."): value for key, value in file.metadata.items()}
    for architecture in ARCHITECTURES:
        if architecture.name == name and architecture.when(keys):
            return architecture
    raise _unknown(name, [architecture.name for architecture in ARCHITECTURES])


def architecture_for(model_type: str) -> Architecture:
    """The architecture of llama.cpp that stands for a Hugging Face family.

    Raises:
        ModelError: there is none.
    """
    for architecture in ARCHITECTURES:
        if model_type in architecture.model_types:
            return architecture
    raise _unknown(model_type, [name for architecture in ARCHITECTURES for name in architecture.model_types])


def _unknown(name: str, known: Sequence[str]) -> ModelError:
    listed = ", ".join(dict.fromkeys(known))
    return ModelError(
        say(
            zh=f"GGUF 架構 {name!r} 尚不支援；可用的有 {listed}。",
            en=f"The GGUF architecture {name!r} is not supported; known are {listed}.",
        )
    )
