"""Adapters as plain folders in PEFT's own format: `adapter_config.json` and `adapter_model.safetensors`."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from wenfang.core.errors import ModelError
from wenfang.core.language import say
from wenfang.core.tensors import write_tensors
from wenfang.model import Decoder
from wenfang.model.families import family_for
from wenfang.model.families.tensor_map import Rows
from wenfang.model.linear import Linear
from wenfang.train.adapter import LoraLinear, projections, scaling
from wenfang.train.config import AdapterConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
TENSORS = {"lora_A.weight": "lora_A", "lora_B.weight": "lora_B", "lora_magnitude_vector": "lora_magnitude"}
"""PEFT's name below a projection, and ours."""
UNSUPPORTED = ("modules_to_save", "layers_to_transform", "trainable_token_indices", "fan_in_fan_out", "lora_bias")
"""Settings of PEFT that an adapter of ours never has; set, they would change the result."""


def save_adapter(model: Decoder, folder: Path, config: AdapterConfig, *, base: Path) -> None:
    """Write the adapter on `model`, which `adapt` put there, so that `peft` opens it on the model in `base`."""
    theirs = their_names(model)
    tensors, targets = dict[str, Tensor](), set[str]()
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            targets.add(theirs[name].rpartition(".")[2])
            for suffix, attribute in TENSORS.items():
                tensor = getattr(module, attribute)
                if tensor is not None:
                    tensors[f"{PREFIX}{theirs[name]}.{suffix}"] = tensor.detach().contiguous()
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base.resolve()),
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": sorted(targets),
        "use_dora": config.method == "dora",
        "use_rslora": config.rank_stabilised,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    write_tensors(tensors, folder / WEIGHTS, {"format": "pt"})


def load_adapter(model: Decoder, folder: Path) -> None:
    """Put the adapter of a PEFT folder on `model`, in place and frozen, with the ranks and scales it says.

    Raises:
        ModelError: the folder lacks a file, is damaged, holds another kind of adapter, or does not fit the model.
    """
    settings, tensors = _read(folder)
    by_module: dict[str, dict[str, Tensor]] = {}
    names = {theirs: ours for ours, theirs in their_names(model).items()}
    for name, tensor in tensors.items():
        suffix = next((s for s in TENSORS if name.endswith(f".{s}")), None)
        module = names.get(name.removeprefix(PREFIX).removesuffix(f".{suffix}")) if suffix else None
        if suffix is None or module is None:
            raise _wrong(folder, say(zh=f"模型沒有 {name!r} 的位置", en=f"the model has no place for {name!r}"))
        by_module.setdefault(module, {})[TENSORS[suffix]] = tensor
    for module, parts in by_module.items():
        model.set_submodule(module, _layer(model, module, parts, settings, folder))


def _layer(
    model: Decoder, name: str, parts: Mapping[str, Tensor], settings: Mapping[str, Any], folder: Path
) -> LoraLinear:
    base = model.get_submodule(name)
    assert isinstance(base, Linear)
    wanted = {"lora_A", "lora_B"} | ({"lora_magnitude"} if settings.get("use_dora") else set())
    if set(parts) != wanted:
        raise _wrong(folder, say(zh=f"{name} 的張量不齊全", en=f"the tensors of {name} are not complete"))
    rank = parts["lora_A"].shape[0]
    alpha = float(_patterned(settings, "alpha_pattern", name, settings.get("lora_alpha", 8)))
    scale = scaling(rank, alpha, rank_stabilised=bool(settings.get("use_rslora")))
    layer = LoraLinear(base, rank=rank, scale=scale, dora=bool(settings.get("use_dora")))
    for attribute, tensor in parts.items():
        parameter: nn.Parameter = getattr(layer, attribute)
        if tensor.shape != parameter.shape or not tensor.isfinite().all():
            raise _wrong(
                folder,
                say(
                    zh=f"{name} 的 {attribute} 形狀 {list(tensor.shape)} 或數值不對，應為 {list(parameter.shape)}",
                    en=f"{attribute} of {name} has shape {list(tensor.shape)} instead of {list(parameter.shape)}, or "
                    "holds NaN",
                ),
            )
        with torch.no_grad():
            parameter.copy_(tensor)
    return layer.requires_grad_(False)


def _patterned(settings: Mapping[str, Any], field: str, name: str, default: object) -> Any:
    """A per-module setting: the first pattern that ends the module's name."""
    for pattern, value in (settings.get(field) or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", name):
            return value
    return default


def their_names(model: Decoder) -> dict[str, str]:
    """Hugging Face's name of each projection inside the blocks that is, or could be, adapted, by ours.

    Raises:
        ModelError: an adapted projection is no tensor of its own in the model's family, so no PEFT folder can hold it.
    """
    family = family_for(model.config)
    links = family.links(model.config)
    joined = {part for link in links if not isinstance(link.ours, str) for part in link.ours if len(link.ours) > 1}
    names: dict[str, str] = {}
    for name in projections(model):
        module = model.get_submodule(name)
        claims = ((link, link.claim(f"{name}.weight", torch.Size((1, 1)))) for link in links)
        link, claim = next((link, claim) for link, claim in claims if claim is not None)
        if re.sub(r"\d+", "*", name, count=1) not in joined and link.layout == Rows():
            names[name] = claim[1].removesuffix(".weight")
        elif isinstance(module, LoraLinear):
            raise ModelError(
                say(
                    zh=f"{family.model_type} 模型裡 {name!r} 不是獨立的張量，PEFT 裝不下。請用 adapter.targets 避開。",
                    en=f"In a {family.model_type} model {name!r} is no tensor of its own, so no PEFT adapter can hold "
                    "it. Leave it out with adapter.targets.",
                )
            )
    return names


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
    except FileNotFoundError as error:
        name = Path(str(error.filename or WEIGHTS)).name
        raise _wrong(folder, say(zh=f"缺少 {name!r}", en=f"it lacks {name!r}")) from None
    except (ValueError, SafetensorError, OSError) as error:
        raise _wrong(folder, say(zh=f"已損壞：{error}", en=f"it is damaged: {error}")) from None
    if not isinstance(settings, dict) or settings.get("peft_type") != "LORA":
        kind = settings.get("peft_type") if isinstance(settings, dict) else None
        raise _wrong(
            folder, say(zh=f"peft_type={kind!r}，只支援 'LORA'", en=f"peft_type={kind!r}; only 'LORA' is read")
        )
    for field in UNSUPPORTED:
        if settings.get(field):
            raise _wrong(folder, say(zh=f"{field} 尚不支援", en=f"{field} is not supported"))
    if settings.get("bias", "none") != "none":
        raise _wrong(folder, say(zh="bias 尚不支援", en="bias is not supported"))
    return settings, tensors


def _wrong(folder: Path, reason: str) -> ModelError:
    return ModelError(
        say(
            zh=f"轉接器 {str(folder)!r} 無法使用：{reason}。",
            en=f"The adapter {str(folder)!r} cannot be used: {reason}.",
        )
    )
