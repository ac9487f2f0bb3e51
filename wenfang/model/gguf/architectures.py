"""How llama.cpp names and lays out what Hugging Face families hold: one entry per architecture it knows."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gguf import MODEL_ARCH, get_tensor_name_map
from torch import Tensor

from wenfang.core.errors import ModelError
from wenfang.core.language import say
from wenfang.model.config import DecoderConfig
from wenfang.model.families import Family
from wenfang.model.families.family import Values, differences
from wenfang.model.gguf.header import GGUFFile, broken


def to_neighbours(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head from Hugging Face's half-split rotary order to llama.cpp's pairs of neighbours."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def to_halves(weight: Tensor, heads: int) -> Tensor:
    """The way back from `to_neighbours`."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


@dataclass(frozen=True)
class Architecture:
    """One architecture of llama.cpp and the Hugging Face family it stands for."""

    arch: MODEL_ARCH
    name: str
    """What the file says, and the prefix of its keys."""
    model_type: str
    """What `config.json` says."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Further keys, and the field of `config.json` that each one holds."""
    known: Callable[[Values], Values] = dict
    """Fields of `config.json` that llama.cpp takes for granted, from those the keys gave."""
    pairs: bool = False
    """Rotary pairs are neighbours: query and key rows are reordered."""
    offset: bool = False
    """Norms are stored as 1 + weight."""

    @property
    def prefix(self) -> str:
        """What the keys of this architecture begin with."""
        return self.name + "."


def _square(values: Values) -> Values:
    """Heads that together are as wide as the model, whatever the key says."""
    return {"head_dim": values["hidden_size"] // values["num_attention_heads"]}


def _gemma3(values: Values) -> Values:
    ropes = {"full_attention": values["rope_theta"], "sliding_attention": 10_000.0}
    return {
        "query_pre_attn_scalar": values["head_dim"],
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in ropes.items()},
    }


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
REQUIRED = ("attention.head_count", "embedding_length", "block_count", "context_length", "feed_forward_length")
LARGEST_SIZE = 1 << 31
NEUTRAL: dict[str, tuple[object, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "rope.scaling.type": ("none",),
}
"""Keys that may be there as long as they ask for nothing."""
ARCHITECTURES = (
    Architecture(MODEL_ARCH.LLAMA, "llama", "llama", pairs=True),
    Architecture(MODEL_ARCH.QWEN3, "qwen3", "qwen3"),
    Architecture(MODEL_ARCH.QWEN2, "qwen2", "qwen2", known=_square),
    Architecture(
        MODEL_ARCH.GEMMA3,
        "gemma3",
        "gemma3_text",
        fields={"attention.sliding_window": "sliding_window"},
        known=_gemma3,
        offset=True,
    ),
)


def architecture_of(file: GGUFFile) -> Architecture:
    """The architecture a file says it holds.

    Raises:
        ModelError: it is not one of ours.
    """
    return _find(str(file.value("general.architecture")), "name")


def architecture_for(model_type: str) -> Architecture:
    """The architecture of llama.cpp that stands for a Hugging Face family.

    Raises:
        ModelError: there is none.
    """
    return _find(model_type, "model_type")


def _find(name: str, by: str) -> Architecture:
    for architecture in ARCHITECTURES:
        if getattr(architecture, by) == name:
            return architecture
    known = ", ".join(getattr(architecture, by) for architecture in ARCHITECTURES)
    raise ModelError(
        say(
            zh=f"GGUF 架構 {name!r} 尚不支援；可用的有 {known}。",
            en=f"The GGUF architecture {name!r} is not supported; known are {known}.",
        )
    )


def file_values(file: GGUFFile) -> Values:
    """What `config.json` would say of the model in `file`.

    Raises:
        ModelError: a key is missing, or one asks for something nobody here would honour.
    """
    architecture = architecture_of(file)
    for key in REQUIRED:
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
    heads = keys[prefix + "attention.head_count"]
    head_dim = keys.get(prefix + "attention.key_length", keys[prefix + "embedding_length"] // heads)
    values: Values = {"head_dim": head_dim, "num_key_value_heads": heads, "rope_theta": 10_000.0}
    same = {"rope.dimension_count": head_dim, "attention.value_length": head_dim}
    fields = COMMON | dict(architecture.fields)
    for key, value in keys.items():
        if not key.startswith(prefix):
            continue
        short = key.removeprefix(prefix)
        if short in fields:
            # Floats are stored in single precision: the shortest decimal that reads back the same was meant.
            values[fields[short]] = float(str(np.float32(value))) if isinstance(value, float) else value
        elif short != "vocab_size" and value not in NEUTRAL.get(short, (same.get(short),)):
            raise _unsupported(key, value)
    values["rope_parameters"] = {"rope_type": "default", "rope_theta": values["rope_theta"]}
    values |= {"model_type": architecture.model_type, "vocab_size": vocab_size, "tie_word_embeddings": tied}
    return values | architecture.known(values)


def config_keys(config: DecoderConfig, family: Family) -> dict[str, int | float]:
    """The architecture's keys for a config; the way back from `config_values`.

    Raises:
        ModelError: llama.cpp's architecture has no key for a field, which is named.
    """
    architecture = architecture_for(family.model_type)
    thetas = [rope.theta for layer in range(config.layers) if (rope := config.rope(layer))]
    values = family.to_hf(config) | {"head_dim": config.head_dim, "rope_theta": max(thetas, default=10_000.0)}
    fields = COMMON | dict(architecture.fields)
    keys = {architecture.prefix + key: values[name] for key, name in fields.items() if values.get(name) is not None}
    for key in ("attention.value_length", "rope.dimension_count"):
        keys[architecture.prefix + key] = config.head_dim
    keys[architecture.prefix + "vocab_size"] = config.vocab_size
    back = config_values(architecture, keys, vocab_size=config.vocab_size, tied=config.tie_embeddings)
    if lost := differences(config, family.from_hf(back)):
        raise ModelError(
            say(
                zh=f"llama.cpp 的 {architecture.name} 無法表示這個模型的 {', '.join(lost)}。",
                en=f"llama.cpp's {architecture.name} cannot express this model's {', '.join(lost)}.",
            )
        )
    return keys


class Names:
    """The tensors of one model under both names, and how their layout changes on the way.

    Args:
        config: the model's shape.
        family: the Hugging Face family whose names its tensors have.
    """

    def __init__(self, config: DecoderConfig, family: Family) -> None:
        self._architecture = architecture_for(family.model_type)
        self._map = get_tensor_name_map(self._architecture.arch, config.layers)
        self._heads = {"q_proj": config.heads, "k_proj": config.kv_heads} if self._architecture.pairs else {}

    def gguf(self, name: str) -> str:
        """llama.cpp's name of a tensor of the Hugging Face folder.

        Raises:
            ModelError: it has none.
        """
        found = self._map.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise _unsupported(name, self._architecture.name)
        return found

    def to_gguf(self, name: str, weight: Tensor) -> Tensor:
        """A tensor of the Hugging Face folder in llama.cpp's layout."""
        module = name.split(".")[-2]
        if self._architecture.offset and "norm" in module:
            return weight + 1
        return to_neighbours(weight, self._heads[module]) if module in self._heads else weight

    def to_hf(self, name: str, weight: Tensor) -> Tensor:
        """A tensor of the file in Hugging Face's layout; `name` is Hugging Face's."""
        module = name.split(".")[-2]
        if self._architecture.offset and "norm" in module:
            return weight - 1
        return to_halves(weight, self._heads[module]) if module in self._heads else weight


class GGUFWeights:
    """The tensors of a GGUF file under the names of the Hugging Face format.

    Args:
        file: the checked file.
        names: how names and layouts correspond.
        wanted: Hugging Face's names of the tensors the model has. What else the file holds keeps its own name.
    """

    def __init__(self, file: GGUFFile, names: Names, wanted: Iterable[str]) -> None:
        self._file, self._names = file, names
        self._stored = {name: stored for name in wanted if (stored := names.gguf(name)) in file.tensors}
        unknown = file.tensors.keys() - self._stored.values()
        self.shapes = {name: file.tensors[stored].shape for name, stored in self._stored.items()}
        self.shapes |= {name: file.tensors[name].shape for name in unknown}

    def source(self, _name: str) -> Path:
        """The file."""
        return self._file.path

    def read(self, name: str) -> Tensor:
        """One tensor in Hugging Face's layout."""
        return self._names.to_hf(name, self._file.read(self._stored[name]))


def _unsupported(key: str, value: object) -> ModelError:
    return ModelError(
        say(
            zh=f"{key}={value!r} 無法在 GGUF 與 Hugging Face 之間轉換。",
            en=f"{key}={value!r} cannot be carried between GGUF and Hugging Face here.",
        )
    )
