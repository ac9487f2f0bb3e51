"""Which optimiser moves which weight, and how fast at each step."""

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from wenfang.model import Decoder
from wenfang.train.config import OptimizerConfig
from wenfang.train.muon import Muon


def make_optimizers(model: Decoder, config: OptimizerConfig) -> list[Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices inside the blocks; AdamW for everything else."""
    matrices = [p for p in model.layers.parameters() if p.ndim == 2]
    ids = {id(p) for p in matrices}
    rest: list[nn.Parameter] = [p for p in model.parameters() if id(p) not in ids]
    muon = Muon(matrices, lr=config.lr, weight_decay=config.weight_decay)
    adam = AdamW(rest, lr=config.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    return [muon, adam]


def rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Share of the peak learning rate at `step` (from 0): linear warm-up, constant, linear decay to zero."""
    warmup, decay = config.warmup * steps, config.decay * steps
    rising = (step + 1) / warmup if warmup else 1.0
    falling = (steps - step) / decay if decay else 1.0
    return min(1.0, rising, falling)


def set_rate(optimizers: list[Optimizer], config: OptimizerConfig, share: float) -> None:
    """Set every learning rate to `share` of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = config.lr * share


@torch.no_grad()
def clip_gradients(model: Decoder, largest: float) -> float:
    """Scale the gradient down to norm `largest` if it is longer; returns its norm before."""
    return float(nn.utils.clip_grad_norm_(model.parameters(), largest))
