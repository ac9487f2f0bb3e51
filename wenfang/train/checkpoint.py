"""The state of a training run in one safetensors file, enough to continue bit for bit."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.optim import Optimizer

from wenfang.core.artifact import write_atomically
from wenfang.model import Decoder

NAME = "checkpoint.safetensors"


def save_checkpoint(folder: Path, model: Decoder, optimizers: Sequence[Optimizer], step: int, seconds: float) -> None:
    """Write weights, optimiser moments, the number of finished steps and the seconds spent on them."""
    tensors = {f"model.{name}": weight for name, weight in model.state_dict().items() if not _is_tied(model, name)}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{index}.{key}": value for key, value in state.items()}
    metadata = {"progress": json.dumps({"step": step, "seconds": seconds})}
    write_atomically(folder / NAME, save({k: v.detach().contiguous() for k, v in tensors.items()}, metadata))


def load_checkpoint(folder: Path, model: Decoder, optimizers: Sequence[Optimizer]) -> tuple[int, float]:
    """Restore a run in place; returns finished steps and seconds, (0, 0.0) where there is no usable checkpoint."""
    path = folder / NAME
    if not path.is_file():
        return 0, 0.0
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            progress = json.loads(file.metadata()["progress"])
    except (SafetensorError, KeyError, ValueError):
        return 0, 0.0
    weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    if model.config.tie_embeddings:
        weights["lm_head.weight"] = weights["embed_tokens.weight"]
    model.load_state_dict(weights)
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith(f"optimizer.{number}."):
                _, _, index, key = name.split(".", 3)
                state.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(progress["step"]), float(progress["seconds"])


def drop_checkpoint(folder: Path) -> None:
    """Remove the checkpoint of a finished run."""
    (folder / NAME).unlink(missing_ok=True)


def _is_tied(model: Decoder, name: str) -> bool:
    return model.config.tie_embeddings and name == "lm_head.weight"
