"""Adapters as plain folders in PEFT's own format: `adapter_config.json` and `adapter_model.safetensors`."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from wenfang.core.errors import ModelError
from wenfang.core.language import say
from wenfang.core.tensors import write_tensors
from wenfang.model import Decoder
from wenfang.model.families import family_for
from wenfang.model.linear import Linear
from wenfang.model.peft import CONFIG, PREFIX, TENSORS, WEIGHTS, peft_names, read_adapter
from wenfang.train.adapter import LoraLinear, projections
from wenfang.train.config import AdapterConfig


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
    bases = {name: model.get_submodule(name) for name in projections(model)}
    for name, weights in read_adapter(model.config, bases, folder).items():
        base = bases[name]
        assert isinstance(base, Linear)
        dora = weights.lora_magnitude is not None
        layer = LoraLinear(base, rank=len(weights.lora_A), scale=weights.scale, dora=dora)
        with torch.no_grad():
            for attribute in TENSORS.values():
                parameter: nn.Parameter | None = getattr(layer, attribute)
                if parameter is not None:
                    parameter.copy_(getattr(weights, attribute))
        model.set_submodule(name, layer.requires_grad_(False))


def their_names(model: Decoder) -> dict[str, str]:
    """Hugging Face's name of each projection inside the blocks that is, or could be, adapted, by ours.

    Raises:
        ModelError: an adapted projection is no tensor of its own in the model's family, so no PEFT folder can hold it.
    """
    names = peft_names(model.config, projections(model))
    for name, theirs in names.items():
        if theirs is None and isinstance(model.get_submodule(name), LoraLinear):
            family = family_for(model.config).model_type
            raise ModelError(
                say(
                    zh=f"{family} 模型裡 {name!r} 不是獨立的張量，PEFT 裝不下。請用 adapter.targets 避開。",
                    en=f"In a {family} model {name!r} is no tensor of its own, so no PEFT adapter can hold "
                    "it. Leave it out with adapter.targets.",
                )
            )
    return {name: theirs for name, theirs in names.items() if theirs is not None}
