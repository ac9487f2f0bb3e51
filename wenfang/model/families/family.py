"""What a model family is: how its `config.json` and its tensors map to our decoder, in both directions."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import ValidationError

from wenfang.core.errors import ModelError
from wenfang.core.language import say
from wenfang.model.config import MOST_LAYERS, DecoderConfig
from wenfang.model.families.tensor_map import Link

T = TypeVar("T")
Values = dict[str, Any]
"""The content of a `config.json`."""


def _nothing(_: Any) -> Values:
    return {}


@dataclass(frozen=True)
class Family:
    """One Hugging Face `model_type`."""

    model_type: str
    architecture: str
    """The class that `transformers` opens it with."""
    fields: Mapping[str, str]
    """Their field → ours, copied as it is."""
    links: Callable[[DecoderConfig], Sequence[Link]]
    """Names of the tensors."""
    traits: Values = field(default_factory=dict)
    """Our fields that every model of the family shares."""
    defaults: Values = field(default_factory=dict)
    """Their fields where `config.json` leaves them out."""
    fixed: Values = field(default_factory=dict)
    """Their fields of which we know one value only; any other is refused."""
    read: Callable[[Values], Values] = _nothing
    """Our remaining fields from theirs."""
    write: Callable[[DecoderConfig], Values] = _nothing
    """Their remaining fields from ours. What they cannot say is left out: `differences` finds it."""
    ignored: tuple[str, ...] = ()
    """Patterns of tensors that checkpoints hold besides."""

    def from_hf(self, values: Values) -> DecoderConfig:
        """Our config for the family's `config.json`.

        Raises:
            ModelError: a field is missing, has the wrong type, or asks for something unsupported.
        """
        values = {**self.defaults, **values}
        values = {name: value for name, value in values.items() if value is not None or name in self.fields}
        for name, expected in self.fixed.items():
            if values.get(name, expected) != expected:
                raise unsupported(name, values[name], expected)
        depth = next(theirs for theirs, ours in self.fields.items() if ours == "layers")
        if isinstance(values.get(depth), int) and values[depth] > MOST_LAYERS:  # Reading lays patterns out by layer.
            raise unsupported(depth, values[depth], f"≤ {MOST_LAYERS}")
        try:
            copied = {ours: values[theirs] for theirs, ours in self.fields.items()}
            return DecoderConfig(**{"family": self.model_type, **self.traits, **copied, **self.read(values)})
        except KeyError as error:
            raise ModelError(
                say(zh=f"config.json 缺少 {error.args[0]!r}。", en=f"config.json lacks {error.args[0]!r}.")
            ) from None
        except ZeroDivisionError:
            raise ModelError(
                say(zh="config.json 有一個大小是 0。", en="config.json is wrong: one of its sizes is 0.")
            ) from None
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            raise ModelError(
                say(
                    zh=f"config.json 的值不對：{name} {first['msg']}",
                    en=f"config.json is wrong: {name} {first['msg']}",
                )
            ) from None

    def to_hf(self, config: DecoderConfig) -> Values:
        """The family's `config.json` fields for our config."""
        copied = {theirs: getattr(config, ours) for theirs, ours in self.fields.items()}
        return {**self.fixed, **copied, **self.write(config)}

    def differences(self, config: DecoderConfig) -> list[str]:
        """Our fields that would not survive being written as this family."""
        try:
            back = self.from_hf(self.to_hf(config))
        except ModelError:
            return list(DecoderConfig.model_fields)
        return differences(config, back)


def differences(mine: DecoderConfig, theirs: DecoderConfig) -> list[str]:
    """The fields in which two models compute differently."""
    ours, others = _comparable(mine), _comparable(theirs)
    return [name for name in ours if not _same(ours[name], others.get(name, ours[name]))]


def unsupported(name: str, value: object, expected: object) -> ModelError:
    """The error for a field set to something that the decoder would silently get wrong."""
    return ModelError(
        say(
            zh=f"config.json 的 {name}={value!r} 尚不支援（只支援 {expected!r}）。",
            en=f"config.json sets {name}={value!r}, which is not supported (only {expected!r} is).",
        )
    )


def shortest(pattern: Sequence[T]) -> tuple[T, ...]:
    """The shortest pattern that, repeated, begins with this one."""
    periods = range(1, len(pattern) + 1)
    period = next(p for p in periods if all(pattern[i] == pattern[i % p] for i in range(len(pattern))))
    return tuple(pattern[:period])


MIXER_FIELDS = {
    "attention": (
        "heads", "kv_heads", "head_dim", "ropes", "alibi", "windows", "attention_scale", "attention_softcap",
        "attention_sinks", "attention_gate", "qk_norm", "qkv_bias", "o_bias", "qkv_clip", "mla",
    ),
    "mamba2": ("mamba2",),
    "gated_deltanet": ("gated_deltanet",),
    "rwkv7": ("rwkv7",),
    "ttt": ("ttt",),
}  # fmt: skip
"""The fields that decide nothing where no layer mixes so."""


def _comparable(config: DecoderConfig) -> Values:
    """What decides a model's outputs, patterns laid out over the layers."""
    values = config.model_dump(exclude={"family"})
    for mixer in set(MIXER_FIELDS) - set(config.mixers):
        for name in MIXER_FIELDS[mixer]:
            del values[name]
    if mamba2 := values.get("mamba2"):
        del mamba2["chunk"]  # Changes the speed alone, and not every format keeps it.
    for name in {"mixers", "ropes", "windows"} & values.keys():
        values[name] = [values[name][layer % len(values[name])] for layer in range(config.layers)]
    if moe := values["moe"]:
        moe["layers"] = [config.experts(layer) is not None for layer in range(config.layers)]
        moe["balance"] = moe["balance"] == "bias"  # A bias takes part in the choice; a loss only in training.
        del moe["balance_rate"], moe["capacity"]
        if all(moe["layers"]):
            values["hidden"] = None  # No dense layer has this width.
    return values


def _same(mine: Any, theirs: Any) -> bool:
    if isinstance(mine, float) and isinstance(theirs, float):
        return math.isclose(mine, theirs, rel_tol=1e-6)
    if isinstance(mine, dict) and isinstance(theirs, dict):
        return mine.keys() == theirs.keys() and all(_same(mine[key], theirs[key]) for key in mine)
    if isinstance(mine, list | tuple) and isinstance(theirs, list | tuple):
        return len(mine) == len(theirs) and all(map(_same, mine, theirs))
    return bool(mine == theirs)
