"""GaLore: Adam in a low-rank projection of each gradient (Zhao et al. 2024, arXiv 2403.03507).

The moments of an m × n matrix take 2 · rank · max(m, n) numbers instead of 2 · m · n.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from wenfang.train.sharding import like, whole


class GaLore(Optimizer):
    """Adam on the gradient's leading singular directions, chosen anew every `refresh` steps.

    Args:
        matrices: groups of two-dimensional weights with their own `lr` and `weight_decay`.
        lr: step length.
        betas: shares of the past in Adam's moments.
        rank: dimensions kept; a matrix with a smaller side keeps that many.
        refresh: steps between two singular value decompositions.
        scale: factor of the updates (α in the paper).
        eps: added to the root of the second moment.
    """

    def __init__(
        self,
        matrices: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        rank: int,
        refresh: int,
        scale: float,
        eps: float = 1e-8,
    ) -> None:
        settings = {"lr": lr, "betas": betas, "rank": rank, "refresh": refresh, "scale": scale, "eps": eps}
        super().__init__(matrices, settings | {"weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    update = like(weight, self._update(weight, whole(weight.grad), group))
                    weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])

    def _update(self, weight: Tensor, gradient_RC: Tensor, group: dict[str, Any]) -> Tensor:
        """Of the whole matrix, whatever part of it this process keeps: the moments are small, and the same for all."""
        # The shorter side is projected, so that the moments are as small as they can be.
        turned = gradient_RC.shape[0] < gradient_RC.shape[1]
        tall = gradient_RC.mT if turned else gradient_RC
        state = self.state[weight]
        for name, value in state.items():
            state[name] = whole(value)  # A checkpoint brings one of the weight's shape back in parts.
        # A checkpoint brings it back to where the weight is, and a GPU would be waited for at each look.
        state["step"] = state.get("step", torch.zeros((), dtype=torch.int64)).cpu()
        if "basis" not in state or int(state["step"]) % group["refresh"] == 0:
            state["basis"] = _leading(tall, group["rank"])
        state["step"] += 1
        low = tall @ state["basis"]
        first, second = (state.setdefault(name, torch.zeros_like(low)) for name in ("first", "second"))
        (b1, b2), step = group["betas"], int(state["step"])
        first.lerp_(low, 1 - b1)
        second.lerp_(low.square(), 1 - b2)
        normal = (first / (1 - b1**step)) / ((second / (1 - b2**step)).sqrt_() + group["eps"])
        update = group["scale"] * normal @ state["basis"].mT
        return update.mT if turned else update


def _leading(tall_RC: Tensor, rank: int) -> Tensor:
    """The right singular vectors of the largest singular values, as columns."""
    _, _, vh = torch.linalg.svd(tall_RC.float(), full_matrices=False)
    return vh[:rank].mT.contiguous().to(tall_RC.dtype)
