"""What llama.cpp calls the architectures that Hugging Face families hold, and the keys that describe each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wenfang.core.errors import ModelError
from wenfang.core.language import say
from wenfang.model.config import DecoderConfig
from wenfang.model.families import FAMILIES, Family
from wenfang.model.families.family import Values, differences
from wenfang.model.families.tensor_map import Link
from wenfang.model.gguf import links
from wenfang.model.gguf.header import GGUFFile, broken

LARGEST_SIZE = 1 << 31
NEUTRAL: dict[str, tuple[object, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "rope.scaling.type": ("none",),
}
"""Keys that may be there as long as they ask for nothing."""

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
    sparse: bool = False
    """Stands for the files of this name that have experts."""

    @property
    def prefix(self) -> str:
        """What the keys of this architecture begin with."""
        return self.name + "."

    @property
    def family(self) -> Family:
        """The family it is read as, with llama.cpp's names of tensors."""
        return replace(FAMILIES[self.model_types[0]], links=self.links, ignored=())


def _square(values: Values) -> Values:
    """Heads that together are as wide as the model, whatever the key says."""
    return {"head_dim": values["hidden_size"] // values["num_attention_heads"]}


def _gemma2(values: Values) -> Values:
    # llama.cpp knows the 27B model by its layers; that one scales by the width of the model, not of the head.
    largest = values["num_hidden_layers"] == 46
    width = values["hidden_size"] // values["num_attention_heads"] if largest else values["head_dim"]
    return {"query_pre_attn_scalar": width}


def _gemma3(values: Values) -> Values:
    ropes = {"full_attention": values["rope_theta"], "sliding_attention": 10_000.0}
    return {
        "query_pre_attn_scalar": values["head_dim"],
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in ropes.items()},
    }


def _phi3_fixed(keys: Values) -> Values:
    return _head_widths(keys) | {"attention.sliding_window": 0}


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
    return {"attention.head_count_kv": keys["attention.head_count"]}


ARCHITECTURES = (
    Architecture("llama", ("llama", "mistral"), links.llama, COMMON),
    Architecture(
        "llama",
        ("mixtral",),
        links.llama,
        COMMON | {key: EXPERTS[key] for key in ("expert_count", "expert_used_count")},
        sparse=True,
    ),
    Architecture("qwen3", ("qwen3",), links.qwen, COMMON),
    Architecture("qwen2", ("qwen2",), links.qwen, COMMON, known=_square),
    Architecture(
        "qwen3moe", ("qwen3_moe",), links.qwen, COMMON | EXPERTS, known=lambda _: {"norm_topk_prob": True}, sparse=True
    ),
    Architecture("smollm3", ("smollm3",), links.llama, COMMON),
    Architecture("olmo2", ("olmo2",), links.olmo2, COMMON, known=_square),
    Architecture("phi3", ("phi3",), links.phi3, COMMON, fixed=_phi3_fixed, known=_square),
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
        "gemma3", ("gemma3_text",), links.gemma, COMMON | {"attention.sliding_window": "sliding_window"}, known=_gemma3
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
)


def architecture_of(file: GGUFFile) -> Architecture:
    """The architecture a file says it holds.

    Raises:
        ModelError: it is not one of ours.
    """
    name = str(file.value("general.architecture"))
    named = [architecture for architecture in ARCHITECTURES if architecture.name == name]
    sparse = bool(file.metadata.get(f"{name}.expert_count"))
    for architecture in named:
        if architecture.sparse == sparse or len(named) == 1:
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


def file_values(file: GGUFFile) -> Values:
    """What `config.json` would say of the model in `file`.

    Raises:
        ModelError: a key is missing, or one asks for something nobody here would honour.
    """
    architecture = architecture_of(file)
    required = ("embedding_length", "block_count", "context_length", "attention.head_count", "feed_forward_length")
    for key in filter(lambda key: key in architecture.fields, required):
        value = file.value(architecture.prefix + key)
        if not isinstance(value, int) or not 0 < value < LARGEST_SIZE:
            raise broken(file.path, f"{architecture.prefix}{key}={value!r}")
    embedding = file.tensors.get("token_embd.weight")
    vocab_size = embedding.shape[0] if embedding else len(file.strings("tokenizer.ggml.tokens"))
    return config_values(architecture, file.metadata, vocab_size=vocab_size, tied="output.weight" not in file.tensors)


def config_values(architecture: Architecture, keys: Mapping[str, Any], *, vocab_size: int, tied: bool) -> Values:
    """What `config.json` would say of a model with these keys.

    Raises:
        ModelError: a key asks for something nobody here would honour.
    """
    prefix = architecture.prefix
    short = {key.removeprefix(prefix): value for key, value in keys.items() if key.startswith(prefix)}
    values: Values = {"rope_theta": 10_000.0}
    if "attention.head_count" in architecture.fields:
        heads = short["attention.head_count"]
        values |= {"head_dim": short["embedding_length"] // heads, "num_key_value_heads": heads}
    fixed = architecture.fixed(short)
    for key, value in short.items():
        if key in architecture.fields:
            # Floats are stored in single precision: the shortest decimal that reads back the same was meant.
            values[architecture.fields[key]] = float(str(np.float32(value))) if isinstance(value, float) else value
        elif key != "vocab_size" and value not in NEUTRAL.get(key, (fixed.get(key),)):
            raise _unsupported(prefix + key, value)
    values["rope_parameters"] = {"rope_type": "default", "rope_theta": values["rope_theta"]}
    values |= {"model_type": architecture.model_types[0], "vocab_size": vocab_size, "tie_word_embeddings": tied}
    return values | architecture.known(values)


def config_keys(architecture: Architecture, config: DecoderConfig) -> dict[str, int | float]:
    """The architecture's keys for a config; the way back from `config_values`.

    Raises:
        ModelError: llama.cpp's architecture has no key for a field, which is named.
    """
    thetas = [rope.theta for layer in range(config.layers) if (rope := config.rope(layer))]
    ours = {
        "head_dim": config.head_dim,
        "rope_theta": max(thetas, default=10_000.0),
        "clip_qkv": config.qkv_clip,
        "inner": config.mamba2.heads * config.mamba2.head_dim,
    }
    values, family = architecture.family.to_hf(config) | ours, architecture.family
    short = {key: values[name] for key, name in architecture.fields.items() if values.get(name) is not None}
    short |= architecture.fixed(short) | {"vocab_size": config.vocab_size}
    keys = {architecture.prefix + key: value for key, value in short.items()}
    back = config_values(architecture, keys, vocab_size=config.vocab_size, tied=config.tie_embeddings)
    if lost := differences(config, family.from_hf(back)):
        raise ModelError(
            say(
                zh=f"llama.cpp 的 {architecture.name} 無法表示這個模型的 {', '.join(lost)}。",
                en=f"llama.cpp's {architecture.name} cannot express this model's {', '.join(lost)}.",
            )
        )
    return keys


def _unknown(name: str, known: Sequence[str]) -> ModelError:
    listed = ", ".join(dict.fromkeys(known))
    return ModelError(
        say(
            zh=f"GGUF 架構 {name!r} 尚不支援；可用的有 {listed}。",
            en=f"The GGUF architecture {name!r} is not supported; known are {listed}.",
        )
    )


def _unsupported(key: str, value: object) -> ModelError:
    return ModelError(
        say(
            zh=f"{key}={value!r} 無法在 GGUF 與 Hugging Face 之間轉換。",
            en=f"{key}={value!r} cannot be carried between GGUF and Hugging Face here.",
        )
    )
