"""How llama.cpp lays out a tensor where it is not as ours."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """Rows of each head in llama.cpp's order for rotary embedding, pairs of neighbours; ours are in halves."""

    heads: int

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return parts[0].unflatten(0, (self.heads, 2, -1)).transpose(1, 2).flatten(0, 2)

    def split(self, whole: Tensor, shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
        return [whole.unflatten(0, (self.heads, -1, 2)).transpose(1, 2).flatten(0, 2)]


@dataclass(frozen=True)
class Offset:
    """A norm's 1 + weight; ours is the weight."""

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return parts[0] + 1

    def split(self, whole: Tensor, shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
        return [whole - 1]


@dataclass(frozen=True)
class Shaped:
    """The same numbers in another shape."""

    shape: tuple[int, ...]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return parts[0].reshape(self.shape)

    def split(self, whole: Tensor, shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
        return [whole.reshape(shapes[0])]


@dataclass(frozen=True)
class Decay:
    """A = −exp(A_log) of a state-space model; ours is A_log.

    Args:
        column: one number a row.
    """

    column: bool

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return -parts[0].exp()[:, None] if self.column else -parts[0].exp()

    def split(self, whole: Tensor, shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
        return [(-whole).log().reshape(shapes[0])]


@dataclass(frozen=True)
class Stacked:
    """Vectors one after the other, with two dimensions of size one between."""

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(parts))[:, None, None]

    def split(self, whole: Tensor, shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
        return list(whole[:, 0, 0])
