"""Whether projections of one input pay as one matrix: query, key and value, and a feed-forward's gate and up.

python benchmarks/projections.py [--rounds 7] [--device cpu]

Prints the time of separate products over that of the fused one, by turns, medians: above 1 the fused one is faster.
Weights rest in fp32 and are cast where they are used, as in the decoder.
"""

import argparse
import time
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wenfang.model.linear import Linear

SHAPES = {"poet": (4096, 192, (192, 64, 64), 512), "reference": (8192, 384, (384, 384, 384), 1024)}
"""Tokens of a step, model width, widths of query, key and value, width inside the feed-forward, as in train.py."""


class Separate(nn.Module):
    """One product for each output."""

    def __init__(self, dim: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.projections = nn.ModuleList(Linear(dim, width) for width in widths)

    def forward(self, x_ND: Tensor) -> tuple[Tensor, ...]:
        return tuple(project(x_ND) for project in self.projections)


class Fused(nn.Module):
    """One product, cut into the outputs."""

    def __init__(self, dim: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.widths, self.projection = widths, Linear(dim, sum(widths))

    def forward(self, x_ND: Tensor) -> tuple[Tensor, ...]:
        return self.projection(x_ND).split(self.widths, -1)


def product(outputs: tuple[Tensor, ...]) -> Tensor:
    """What follows: SwiGLU's middle, or the contiguous heads that attention wants."""
    if len(outputs) == 2:
        return F.silu(outputs[0]) * outputs[1]
    return torch.cat([output.contiguous() for output in outputs], -1)


def seconds(module: nn.Module, x_ND: Tensor, *, learn: bool) -> float:
    """One pass; with `learn` the way back too."""
    start = time.perf_counter()
    with torch.set_grad_enabled(learn):
        y = product(module(x_ND))
        if learn:
            y.backward(torch.ones_like(y))
    if x_ND.is_cuda:
        torch.cuda.synchronize()
    module.zero_grad()
    return time.perf_counter() - start


def main() -> None:
    """Print one row for each shape, dtype and kind of projection."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    print("| shape | projections | dtype | forward | and backward |")
    print("| --- | --- | --- | ---: | ---: |")
    for shape, (tokens, dim, qkv, hidden) in SHAPES.items():
        for kind, widths in (("query, key, value", qkv), ("gate, up", (hidden, hidden))):
            modules = [maker(dim, widths).to(arguments.device) for maker in (Separate, Fused)]
            for dtype in (torch.float32, torch.bfloat16):
                x_ND = torch.randn(tokens, dim, dtype=dtype, device=arguments.device, requires_grad=True)
                cells = []
                for learn in (False, True):
                    times: list[list[float]] = [[], []]
                    for _ in range(arguments.rounds + 2):
                        for module, found in zip(modules, times, strict=True):
                            found.append(seconds(module, x_ND, learn=learn))
                    cells.append(median(times[0][2:]) / median(times[1][2:]))
                name = str(dtype).removeprefix("torch.")
                print(f"| {shape} | {kind} | {name} | {cells[0]:.2f} | {cells[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
