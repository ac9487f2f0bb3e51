"""Which optimiser moves which weight, and how fast."""

from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from wenfang.model import Decoder
from wenfang.train.adam8bit import Adam8bit
from wenfang.train.config import OptimizerConfig
from wenfang.train.galore import GaLore
from wenfang.train.lion import Lion
from wenfang.train.muon import Muon
from wenfang.train.sharding import whole

BETAS = (0.9, 0.95)
USUAL_RATES = {"muon": 0.008, "adamw": 0.002, "adam8bit": 0.002, "lion": 0.0004, "galore": 0.008}
"""Peak learning rate where none is given."""
Group = dict[str, Any]


def make_optimizers(model: Decoder, config: OptimizerConfig) -> list[Optimizer]:
    """The optimisers of every weight that is trained.

    Weight decay falls on the matrices inside the blocks alone; embeddings, head and norms are left out. Muon and GaLore
    are about whole matrices, so an adapter's factors are moved by AdamW in their place.
    """
    adapter = any("lora_" in name for name, weight in model.named_parameters() if weight.requires_grad)
    kind = "adamw" if adapter and config.name in ("muon", "galore") else config.name
    peak = config.lr or USUAL_RATES[kind]
    matrices, rest = _groups(model, config, peak)
    if kind == "adamw":
        return [_adamw(matrices + rest)]
    if kind == "adam8bit":
        return [Adam8bit(matrices + rest, lr=peak, betas=BETAS)]
    if kind == "lion":
        return [Lion(matrices + rest, lr=peak)]
    if kind == "muon":
        return [Muon(matrices, lr=peak), _adamw(rest)]
    projected = GaLore(
        matrices,
        lr=peak,
        betas=BETAS,
        rank=config.galore_rank,
        refresh=config.galore_refresh,
        scale=config.galore_scale,
    )
    return [projected, _adamw(rest)]


@torch.no_grad()
def clip_gradients(model: nn.Module, largest: float) -> float:
    """Scale the gradient down to norm `largest` if it is longer; returns its norm before."""
    return float(whole(nn.utils.clip_grad_norm_(model.parameters(), largest)))


def _adamw(groups: list[Group]) -> AdamW:
    return AdamW(groups, betas=BETAS, fused=True)


def _groups(model: Decoder, config: OptimizerConfig, peak: float) -> tuple[list[Group], list[Group]]:
    """The matrices inside the blocks, which decay, and the rest; each in groups of one learning rate.

    With `layer_decay` d, a layer n below the top learns at dⁿ of the peak (Howard & Ruder 2018). Head and last norm
    are the top, the embeddings one below the first layer.
    """
    matrices: dict[float, Group] = {}
    rest: dict[float, Group] = {}
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        inside = name.startswith("layers.")
        depth = int(name.split(".")[1]) + 1 if inside else 0 if name.startswith("embed_tokens.") else len(model.layers)
        own = peak * config.layer_decay ** (len(model.layers) - depth)
        matrix = inside and weight.ndim == 2
        new: Group = {"params": [], "lr": own, "peak": own, "weight_decay": config.weight_decay if matrix else 0.0}
        (matrices if matrix else rest).setdefault(own, new)["params"].append(weight)
    return list(matrices.values()), list(rest.values())
