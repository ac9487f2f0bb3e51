"""The learning rate over a run, as a share of its peak."""

import math

from torch.optim import Optimizer

from wenfang.train.config import OptimizerConfig


def rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Share of the peak at `step` (from 0): a linear rise over the warm-up, then what `config.schedule` says.

    Cosine is Loshchilov & Hutter 2017, without restarts; wsd (warm-up, stable, decay) is Hu et al. 2024.
    """
    warmup = config.warmup * steps
    rising = (step + 1) / warmup if warmup else 1.0
    left = (steps - step) / max(steps - warmup, 1)
    decay = config.decay * steps
    shares = {
        "wsd": (steps - step) / decay if decay else 1.0,
        "linear": left,
        "cosine": (1 - math.cos(math.pi * min(left, 1.0))) / 2,
        "constant": 1.0,
    }
    return min(1.0, rising, config.floor + (1 - config.floor) * shares[config.schedule])


def set_rate(optimizers: list[Optimizer], share: float) -> None:
    """Set every learning rate to `share` of its group's own peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share
