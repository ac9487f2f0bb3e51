"""Lion: the sign of an interpolated momentum (Chen et al. 2023, "Symbolic discovery of optimization algorithms")."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Lion(Optimizer):
    """One moment per weight; every weight moves by exactly the learning rate.

    Args:
        groups: weights with their own `lr` and `weight_decay`.
        lr: step length.
        betas: shares of the past in the update and in the moment.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float] = (0.9, 0.99)
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)

    def _update(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, (past, kept) = self.state[weight], group["betas"]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        update = state["momentum"].lerp(gradient, 1 - past).sign_()
        weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])
        state["momentum"].lerp_(gradient, 1 - kept)
