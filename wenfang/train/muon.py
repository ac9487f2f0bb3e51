"""Muon: momentum whose update is orthogonalised, with all matrices of one shape handled in one product.

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; the scale that matches
AdamW's update size is from Liu et al. 2025, "Muon is scalable for LLM training".
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from wenfang.train.placement import native_bf16
from wenfang.train.sharding import like, whole

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Quintic whose iteration drives every singular value towards 1, fastest from small ones (Jordan et al.)."""
ITERATIONS = 5


@torch.no_grad()
def orthogonalise(matrices_NRC: Tensor) -> Tensor:
    """Replace each matrix's singular values by roughly 1 (0.7 to 1.2), by Newton–Schulz iteration: in bf16, or in fp32
    where bf16 would be emulated."""
    a, b, c = COEFFICIENTS
    tall = matrices_NRC.shape[1] > matrices_NRC.shape[2]
    dtype = torch.bfloat16 if native_bf16(matrices_NRC.device) else torch.float32
    x_NRC = (matrices_NRC.mT if tall else matrices_NRC).to(dtype)
    x_NRC = x_NRC / (x_NRC.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram_NRR = x_NRC @ x_NRC.mT
        x_NRC = a * x_NRC + (b * gram_NRR + c * gram_NRR @ gram_NRR) @ x_NRC
    return (x_NRC.mT if tall else x_NRC).to(matrices_NRC.dtype)


class Muon(Optimizer):
    """Nesterov momentum, orthogonalised; for the matrices inside the blocks.

    Args:
        matrices: two-dimensional weights, or groups of them.
        lr: step length, on the scale of AdamW's: an update's root mean square is about a fifth of it.
        momentum: share of the past in the moving sum of gradients.
        weight_decay: decoupled, as in AdamW.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter] | list[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape.setdefault(weight.shape, []).append(weight)
            for weights in by_shape.values():
                self._move(weights, group)

    def _move(self, weights: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Update matrices of one shape; what that takes is free again before the next shape's turn."""
        updates_NRC = torch.stack([whole(self._momentum(weight, group["momentum"])) for weight in weights])
        scale = group["lr"] * 0.2 * max(weights[0].shape) ** 0.5
        for weight, update_RC in zip(weights, orthogonalise(updates_NRC), strict=True):
            weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(like(weight, update_RC), alpha=-scale)

    def _momentum(self, weight: nn.Parameter, share: float) -> Tensor:
        """The gradient as Nesterov momentum sees it."""
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        assert weight.grad is not None
        state["momentum"].lerp_(weight.grad, 1 - share)
        return weight.grad.lerp(state["momentum"], share)
