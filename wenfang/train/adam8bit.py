"""Adam with its moments in eight bits (Dettmers et al. 2022, "8-bit optimizers via block-wise quantization").

Each block of 256 numbers is divided by its largest magnitude and each number replaced by the nearest of 256 levels:
one byte instead of four, and one scale per block.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

BLOCK = 256
SMALLEST = 4096
"""Weights with fewer elements keep moments in full: they take no memory and suffer most."""


_TABLES: dict[tuple[bool, torch.device], Tensor] = {}


def levels(device: torch.device, *, signed: bool) -> Tensor:
    """The 256 ascending levels in [−1, 1] or [0, 1] of dynamic tree quantisation: seven decades, each with twice as
    many levels as the one below, so that small numbers keep their relative precision."""
    if (signed, device) in _TABLES:
        return _TABLES[signed, device]
    decades, positive = 7, list[float]()
    for decade in range(decades):
        count = 2 ** (decade if signed else decade + 1)
        middles = [0.1 + 0.9 * (step + 0.5) / count for step in range(count)]
        positive += [middle * 10.0 ** (decade - decades + 1) for middle in middles]
    table = torch.tensor(sorted(positive + ([-value for value in positive] if signed else []) + [0.0, 1.0])).to(device)
    if type(table) is Tensor:  # One made in a forecast has no memory, and would end every training after it.
        _TABLES[signed, device] = table
    return table


def quantise(values: Tensor, *, signed: bool) -> tuple[Tensor, Tensor]:
    """Codes (uint8, the shape of `values`) and the largest magnitude of each block (fp32)."""
    blocks = _blocks(values)
    scales = blocks.abs().amax(1)
    table = levels(values.device, signed=signed)
    normal = blocks / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    codes = torch.bucketize(normal, (table[1:] + table[:-1]) / 2)
    if not signed:  # A second moment rounded down to zero would blow its update up.
        codes = codes.maximum((normal > 0).long())
    codes = codes.to(torch.uint8)
    return codes.flatten()[: values.numel()].view_as(values), scales


def dequantise(codes: Tensor, scales: Tensor, *, signed: bool) -> Tensor:
    """The fp32 numbers nearest to what was quantised."""
    values = levels(codes.device, signed=signed)[_blocks(codes).long()] * scales[:, None]
    return values.flatten()[: codes.numel()].view_as(codes)


def _blocks(values: Tensor) -> Tensor:
    flat = values.flatten()
    return torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)


class Adam8bit(Optimizer):
    """AdamW whose moments rest in eight bits between two steps.

    Args:
        groups: weights with their own `lr` and `weight_decay`.
        lr: step length.
        betas: shares of the past in the two moments.
        eps: added to the root of the second moment.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float = 1e-8
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every weight that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)

    def _update(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        # A checkpoint brings it back to where the weight is, and a GPU would be waited for at each look.
        state["step"] = state.get("step", torch.zeros((), dtype=torch.int64)).cpu() + 1
        (b1, b2), step = group["betas"], int(state["step"])
        first = self._moment(weight, "first", signed=True).lerp_(gradient, 1 - b1)
        second = self._moment(weight, "second", signed=False).lerp_(gradient.square(), 1 - b2)
        update = (first / (1 - b1**step)) / ((second / (1 - b2**step)).sqrt_() + group["eps"])
        weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])
        for name, moment, signed in (("first", first, True), ("second", second, False)):
            if moment.numel() < SMALLEST:
                state[name] = moment
            else:
                state[name], state[f"{name}_scales"] = quantise(moment, signed=signed)

    def _moment(self, weight: Tensor, name: str, *, signed: bool) -> Tensor:
        state = self.state[weight]
        if name not in state:
            return torch.zeros_like(weight, dtype=torch.float32)
        if f"{name}_scales" not in state:
            return state[name]
        return dequantise(state[name], state[f"{name}_scales"], signed=signed)
