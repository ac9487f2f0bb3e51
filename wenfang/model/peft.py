"""Low-rank adapters in PEFT's own format, `adapter_config.json` and `adapter_model.safetensors`: names and weights.

Shapes: O outputs, I inputs, R rank.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from wenfang.core.errors import ModelError
from wenfang.core.language import say
from wenfang.model.config import DecoderConfig
from wenfang.model.families import family_for
from wenfang.model.families.tensor_map import Rows

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
TENSORS = {"lora_A.weight": "lora_A", "lora_B.weight": "lora_B", "lora_magnitude_vector": "lora_magnitude"}
"""PEFT's name below a projection, and ours."""
UNSUPPORTED = ("modules_to_save", "layers_to_transform", "trainable_token_indices", "fan_in_fan_out", "lora_bias")
"""Settings of PEFT that an adapter of ours never has; set, they would change the result."""


@dataclass(frozen=True)
class LoraWeights:
    """What an adapter adds to one projection: scale · B · A (Hu et al. 2021)."""

    lora_A: Tensor
    """[R, I]."""
    lora_B: Tensor
    """[O, R]."""
    scale: float
    lora_magnitude: Tensor | None
    """DoRA's length of each output's weight vector, [O] (Liu et al. 2024)."""


def scaling(rank: int, alpha: float, *, rank_stabilised: bool) -> float:
    """The factor of B · A: alpha over the rank, or over its root (rsLoRA, Kalajdzievski 2023)."""
    return alpha / (math.sqrt(rank) if rank_stabilised else rank)


def read_adapter(config: DecoderConfig, projections: Mapping[str, nn.Module], folder: Path) -> dict[str, LoraWeights]:
    """The weights of a PEFT folder by our name of the projection.

    Args:
        config: of the base model.
        projections: its projections inside the blocks by name; each has `in_features` and `out_features`.

    Raises:
        ModelError: the folder lacks a file, is damaged, holds another kind of adapter, or does not fit the model.
    """
    settings, tensors = _read(folder)
    by_module: dict[str, dict[str, Tensor]] = {}
    names = {theirs: ours for ours, theirs in peft_names(config, projections).items() if theirs is not None}
    for name, tensor in tensors.items():
        suffix = next((s for s in TENSORS if name.endswith(f".{s}")), None)
        module = names.get(name.removeprefix(PREFIX).removesuffix(f".{suffix}")) if suffix else None
        if suffix is None or module is None:
            raise unusable(folder, say(zh=f"模型沒有 {name!r} 的位置", en=f"the model has no place for {name!r}"))
        by_module.setdefault(module, {})[TENSORS[suffix]] = tensor
    return {
        module: _weights(module, projections[module], parts, settings, folder) for module, parts in by_module.items()
    }


def read_rank(folder: Path) -> int:
    """The largest rank of a PEFT folder's projections.

    Raises:
        ModelError: the folder lacks a file, is damaged or holds another kind of adapter.
    """
    _, tensors = _read(folder)
    return max((len(tensor) for name, tensor in tensors.items() if name.endswith("lora_A.weight")), default=0)


def peft_names(config: DecoderConfig, names: Iterable[str]) -> dict[str, str | None]:
    """Hugging Face's name of each projection; None where it is no tensor of its own in the model's family."""
    links = family_for(config).links(config)
    joined = {part for link in links if not isinstance(link.ours, str) for part in link.ours if len(link.ours) > 1}
    theirs: dict[str, str | None] = {}
    for name in names:
        claims = ((link, link.claim(f"{name}.weight", torch.Size((1, 1)))) for link in links)
        link, claim = next((link, claim) for link, claim in claims if claim is not None)
        own = re.sub(r"\d+", "*", name, count=1) not in joined and link.layout == Rows()
        theirs[name] = claim[1].removesuffix(".weight") if own else None
    return theirs


def unusable(folder: Path, reason: str) -> ModelError:
    """An error that names the adapter."""
    return ModelError(
        say(
            zh=f"轉接器 {str(folder)!r} 無法使用：{reason}。",
            en=f"The adapter {str(folder)!r} cannot be used: {reason}.",
        )
    )


def _weights(
    name: str, base: nn.Module, parts: Mapping[str, Tensor], settings: Mapping[str, Any], folder: Path
) -> LoraWeights:
    dora = bool(settings.get("use_dora"))
    if set(parts) != {"lora_A", "lora_B"} | ({"lora_magnitude"} if dora else set()):
        raise unusable(folder, say(zh=f"{name} 的張量不齊全", en=f"the tensors of {name} are not complete"))
    rank = parts["lora_A"].shape[0]
    shapes = {"lora_A": [rank, base.in_features], "lora_B": [base.out_features, rank]}
    for part, tensor in parts.items():
        shape = shapes.get(part, [base.out_features])
        if list(tensor.shape) != shape or not rank or not tensor.isfinite().all():
            raise unusable(
                folder,
                say(
                    zh=f"{name} 的 {part} 形狀 {list(tensor.shape)} 或數值不對，應為 {shape}",
                    en=f"{part} of {name} has shape {list(tensor.shape)} instead of {shape}, or holds NaN",
                ),
            )
    alpha = float(_patterned(settings, "alpha_pattern", name, settings.get("lora_alpha", 8)))
    scale = scaling(rank, alpha, rank_stabilised=bool(settings.get("use_rslora")))
    return LoraWeights(parts["lora_A"], parts["lora_B"], scale, parts.get("lora_magnitude"))


def _patterned(settings: Mapping[str, Any], field: str, name: str, default: object) -> Any:
    """A per-module setting: the first pattern that ends the module's name."""
    for pattern, value in (settings.get(field) or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", name):
            return value
    return default


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
    except FileNotFoundError as error:
        name = Path(str(error.filename or WEIGHTS)).name
        raise unusable(folder, say(zh=f"缺少 {name!r}", en=f"it lacks {name!r}")) from None
    except (ValueError, SafetensorError, OSError) as error:
        raise unusable(folder, say(zh=f"已損壞：{error}", en=f"it is damaged: {error}")) from None
    if not isinstance(settings, dict) or settings.get("peft_type") != "LORA":
        kind = settings.get("peft_type") if isinstance(settings, dict) else None
        raise unusable(
            folder, say(zh=f"peft_type={kind!r}，只支援 'LORA'", en=f"peft_type={kind!r}; only 'LORA' is read")
        )
    for field in UNSUPPORTED:
        if settings.get(field):
            raise unusable(folder, say(zh=f"{field} 尚不支援", en=f"{field} is not supported"))
    if settings.get("bias", "none") != "none":
        raise unusable(folder, say(zh="bias 尚不支援", en="bias is not supported"))
    return settings, tensors
