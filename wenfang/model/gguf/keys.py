"""The keys of a GGUF file, and what `config.json` says instead."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from wenfang.core.errors import ModelError
from wenfang.core.language import say
from wenfang.model.config import DecoderConfig
from wenfang.model.families.family import Values, differences
from wenfang.model.gguf.architectures import Architecture, architecture_of
from wenfang.model.gguf.header import GGUFFile, broken, uncarried
from wenfang.model.gguf.rope import (
    FINETUNED,
    KEYS,
    NUMBERS,
    TYPE,
    rope_tensors,
    scaling_keys,
    scaling_values,
)
from wenfang.model.parts import RopeConfig

LARGEST_SIZE = 1 << 31
REQUIRED = ("embedding_length", "block_count", "context_length", "attention.head_count", "feed_forward_length")
NEUTRAL: dict[str, tuple[object, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    TYPE: ("none",),
    FINETUNED: (True, False),
}
"""Keys that may be there as long as they ask for nothing."""
WIDTHS = {"attention.key_length_mla": "attention.key_length", "attention.value_length_mla": "attention.value_length"}
"""Widths of a head in DeepSeek files of 2025 and later, whose other keys describe the latent cache instead."""


def file_values(file: GGUFFile) -> Values:
    """What `config.json` would say of the model in `file`.

    Raises:
        ModelError: a key is missing, or one asks for something nobody here would honour.
    """
    architecture = architecture_of(file)
    for key in (*architecture.fields, *NUMBERS, *WIDTHS):
        value = file.metadata.get(architecture.prefix + key, 1)
        number = isinstance(value, int | float) and 0 <= value < LARGEST_SIZE
        if not number or (key in REQUIRED and (not value or file.value(architecture.prefix + key) is None)):
            raise broken(file.path, f"{architecture.prefix}{key}={value!r}")
    embedding = file.tensors.get("token_embd.weight")
    vocab_size = embedding.shape[0] if embedding else len(file.strings("tokenizer.ggml.tokens"))
    tied = "output.weight" not in file.tensors
    factors = {name: file.read(name) for name in architecture.factors if name in file.tensors}
    try:
        return config_values(architecture, file.metadata, factors, vocab_size=vocab_size, tied=tied)
    except KeyError as error:
        raise broken(file.path, say(zh=f"缺少 {error.args[0]}", en=f"it lacks {error.args[0]}")) from None
    except ZeroDivisionError:
        raise broken(file.path, say(zh="某個大小是 0", en="one of its sizes is 0")) from None


def config_values(
    architecture: Architecture,
    keys: Mapping[str, Any],
    factors: Mapping[str, Tensor],
    *,
    vocab_size: int,
    tied: bool,
) -> Values:
    """What `config.json` would say of a model with these keys and tensors of factors for its rotary embedding.

    Raises:
        ModelError: a key asks for something nobody here would honour.
    """
    prefix = architecture.prefix
    short = _as_before({key.removeprefix(prefix): value for key, value in keys.items() if key.startswith(prefix)})
    values: Values = {"rope_theta": 10_000.0}
    if "attention.head_count" in architecture.fields:
        heads = short["attention.head_count"]
        values |= {"head_dim": short["embedding_length"] // heads, "num_key_value_heads": heads}
    fixed = architecture.fixed(short)
    for key, value in short.items():
        if key in architecture.fields:
            # Floats are stored in single precision: the shortest decimal that reads back the same was meant.
            values[architecture.fields[key]] = float(str(np.float32(value))) if isinstance(value, float) else value
        elif (
            key != "vocab_size"
            and not (architecture.scaled and key in KEYS)
            and value not in NEUTRAL.get(key, (fixed.get(key),))
        ):
            raise uncarried(prefix + key, value)
    scaling = scaling_values(short, factors) if architecture.scaled else {}
    values["rope_parameters"] = {"rope_type": "default", "rope_theta": values["rope_theta"], **scaling}
    values |= {"model_type": architecture.model_types[0], "vocab_size": vocab_size, "tie_word_embeddings": tied}
    return values | architecture.known(values)


def _as_before(keys: Values) -> Values:
    """The keys of a newer DeepSeek file as older ones say the same; those of any other file as they are."""
    if not all(width in keys for width in WIDTHS):
        return keys
    heads = {"attention.head_count_kv": keys["attention.head_count"]}
    return {key: keys[key] for key in keys if key not in WIDTHS} | {WIDTHS[key]: keys[key] for key in WIDTHS} | heads


def config_keys(architecture: Architecture, config: DecoderConfig) -> dict[str, int | float | str]:
    """The architecture's keys for a config; the way back from `config_values`.

    Raises:
        ModelError: llama.cpp's architecture has no key for a field, which is named.
    """
    thetas = [rope.theta for layer in range(config.layers) if (rope := config.rope(layer))]
    ours = {
        "head_dim": config.head_dim,
        "rope_theta": max(thetas, default=10_000.0),
        "clip_qkv": config.qkv_clip,
        "inner": _inner(config),
        "rope_width": config.rope_width(next(filter(None, config.ropes), RopeConfig())),
        "value_width": config.head_dim,
        "full_attention_interval": (config.attention_layers or [0])[0] + 1,
    }
    family = architecture.family
    values = family.to_hf(config) | ours
    short = {key: values[name] for key, name in architecture.fields.items() if values.get(name) is not None}
    short |= architecture.fixed(short) | {"vocab_size": config.vocab_size}
    factors = {name: tensor for name, tensor in rope_tensors(config).items() if name in architecture.factors}
    if architecture.scaled:
        short |= scaling_keys(config, factors)
    keys = {architecture.prefix + key: value for key, value in short.items()}
    back = config_values(architecture, keys, factors, vocab_size=config.vocab_size, tied=config.tie_embeddings)
    if lost := differences(config, family.from_hf(back)):
        raise ModelError(
            say(
                zh=f"llama.cpp 的 {architecture.name} 無法表示這個模型的 {', '.join(lost)}。",
                en=f"llama.cpp's {architecture.name} cannot express this model's {', '.join(lost)}.",
            )
        )
    return keys


def _inner(config: DecoderConfig) -> int:
    """What llama.cpp calls the inner size of a recurrent layer."""
    if "gated_deltanet" in config.mixers:
        return config.gated_deltanet.value_heads * config.gated_deltanet.value_dim
    return config.mamba2.heads * config.mamba2.head_dim
