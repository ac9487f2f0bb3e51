"""How the tensors of a checkpoint and the parameters of our decoder correspond, read in both directions."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Layout(Protocol):
    """How several tensors of ours lie in one of the checkpoint's."""

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The checkpoint's tensor from ours."""

    def split(self, whole: Tensor, shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
        """Ours, of these shapes, from the checkpoint's."""


@dataclass(frozen=True)
class Rows:
    """One below the other (a single one as it is), by their first dimension.

    Args:
        transposed: matrices lie on their side, as in GPT-2.
    """

    transposed: bool = False

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        whole = torch.cat(list(parts)) if len(parts) > 1 else parts[0]
        return whole.mT if self.transposed and whole.ndim == 2 else whole

    def split(self, whole: Tensor, shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
        whole = whole.mT if self.transposed and whole.ndim == 2 else whole
        return whole.split([shape[0] for shape in shapes])


@dataclass(frozen=True)
class HeadRows:
    """By turns, head after head: q k v of the first head, q k v of the second (BLOOM)."""

    heads: int

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([part.unflatten(0, (self.heads, -1)) for part in parts], 1).flatten(0, 1)

    def split(self, whole: Tensor, shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
        by_head = whole.unflatten(0, (self.heads, -1)).split([shape[0] // self.heads for shape in shapes], 1)
        return [part.flatten(0, 1) for part in by_head]


@dataclass(frozen=True)
class PairedRows:
    """The last `width` rows of each head, which rotary embedding turns: ours hold first all cosine partners and then
    all sine partners, the checkpoint's hold them in pairs (DeepSeek)."""

    heads: int
    width: int

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return self._reorder(parts[0], (2, -1))

    def split(self, whole: Tensor, shapes: Sequence[torch.Size]) -> Sequence[Tensor]:
        return [self._reorder(whole, (-1, 2))]

    def _reorder(self, tensor: Tensor, pairs: tuple[int, int]) -> Tensor:
        by_head = tensor.unflatten(0, (self.heads, -1))
        kept, turned = by_head[:, : -self.width], by_head[:, -self.width :]
        turned = turned.unflatten(1, pairs).transpose(1, 2).flatten(1, 2)
        return torch.cat((kept, turned), 1).flatten(0, 1)


@dataclass(frozen=True)
class Link:
    """Modules of ours and the checkpoint's module that holds the same numbers.

    `*` stands for a layer's number. A single module of ours brings all that lies below it, under the same names;
    several are parts of one tensor. `#` in `theirs` stands for an expert: such a link knows only tensors that hold the
    matrices of all experts.
    """

    ours: str | tuple[str, ...]
    theirs: str
    layout: Layout = Rows()

    def claim(self, name: str, shape: torch.Size) -> tuple[tuple[str, ...], str] | None:
        """Our tensors that share a tensor of the checkpoint, `name` one of them, and its name; None where this
        link says nothing about `name`."""
        modules = (self.ours,) if isinstance(self.ours, str) else self.ours
        patterns = (re.escape(module).replace(r"\*", r"(?P<layer>\d+)") + r"(?P<rest>\..+)?" for module in modules)
        match = next(filter(None, (re.fullmatch(pattern, name) for pattern in patterns)), None)
        if match is None or ("#" in self.theirs and len(shape) != 3):
            return None
        layer = match.groupdict().get("layer") or ""
        rest = match["rest"] or ""
        return tuple(module.replace("*", layer) + rest for module in modules), self.theirs.replace("*", layer) + rest


@dataclass(frozen=True)
class _Match:
    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    layout: Layout


class TensorMap:
    """The correspondence for one decoder.

    Args:
        links: the first link that knows a tensor decides.
        state: the decoder's own tensors by name (on the meta device is enough), tied ones left out.
        ignored: patterns of names that checkpoints of the family may hold besides.
    """

    def __init__(self, links: Sequence[Link], state: Mapping[str, Tensor], ignored: Iterable[str] = ()) -> None:
        self._ours = {name: tensor.shape for name, tensor in state.items()}
        self._matches = list(self._match(links))
        self._ignored = re.compile("|".join(["lm_head\\.weight", *ignored]))
        self.shapes: dict[str, torch.Size] = {theirs: tensor.shape for theirs, tensor in self.to_checkpoint(state)}
        """Every tensor that the checkpoint must hold."""

    def to_checkpoint(self, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The checkpoint's tensors, one after the other, made from ours."""
        for match in self._matches:
            if len(match.theirs) > 1:
                yield from zip(match.theirs, state[match.ours[0]], strict=True)
            else:
                yield match.theirs[0], match.layout.join([state[name] for name in match.ours])

    def from_checkpoint(self, read: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Our tensors, one after the other; `read` gets a checkpoint's tensor by name."""
        for match in self._matches:
            if len(match.theirs) > 1:
                yield match.ours[0], torch.stack([read(name) for name in match.theirs])
            else:
                shapes = [self._ours[name] for name in match.ours]
                yield from zip(match.ours, match.layout.split(read(match.theirs[0]), shapes), strict=True)

    def locate(self, found: set[str]) -> dict[str, str]:
        """The name in the file of each tensor that it holds of ours. Some checkpoints leave out the prefix of the
        inner model (`transformer.h.0…` becomes `h.0…`)."""
        located = {name: name for name in self.shapes if name in found}
        short = {name: name.split(".", 1)[1] for name in self.shapes if name not in located}
        return located | {name: rest for name, rest in short.items() if rest in found}

    def is_ignored(self, name: str) -> bool:
        """Whether a checkpoint may hold this tensor although the decoder has no use for it."""
        return self._ignored.fullmatch(name) is not None

    def _match(self, links: Sequence[Link]) -> Iterator[_Match]:
        done: set[str] = set()
        for name, shape in self._ours.items():
            if name in done:
                continue
            link, (ours, theirs) = next(
                (link, claimed) for link in links if (claimed := link.claim(name, shape)) is not None
            )
            done.update(ours)
            experts = shape[0] if "#" in theirs else 1
            yield _Match(ours, tuple(theirs.replace("#", str(expert)) for expert in range(experts)), link.layout)
