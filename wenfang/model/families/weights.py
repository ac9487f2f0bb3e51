"""How the tensors of a checkpoint and the parameters of our decoder correspond, read in both directions."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Link:
    """A module of ours and its name in a checkpoint; `*` stands for a layer's number. What lies below the module
    (`weight`, `bias`, further modules) keeps its name."""

    ours: str
    theirs: str

    def rename(self, name: str) -> str | None:
        """The checkpoint's name of our tensor, None where this link says nothing about it."""
        pattern = re.escape(self.ours).replace(r"\*", r"(\d+)")
        match = re.fullmatch(rf"{pattern}(?P<rest>\..+)?", name)
        if match is None:
            return None
        theirs = self.theirs.replace("*", match[1]) if "*" in self.theirs else self.theirs
        return theirs + (match["rest"] or "")


class Weights:
    """The correspondence for one decoder.

    Args:
        links: the first link that knows a tensor decides.
        state: the decoder's own tensors by name (on the meta device is enough), tied ones left out.
    """

    def __init__(self, links: Sequence[Link], state: Mapping[str, Tensor]) -> None:
        self._theirs = {name: next(filter(None, (link.rename(name) for link in links))) for name in state}
        self.shapes: dict[str, torch.Size] = {theirs: tensor.shape for theirs, tensor in self.to_checkpoint(state)}
        """Every tensor that the checkpoint must hold, and no other."""

    def to_checkpoint(self, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The checkpoint's tensors, one after the other, made from ours."""
        for name, theirs in self._theirs.items():
            yield theirs, state[name]

    def from_checkpoint(self, read: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Our tensors, one after the other; `read` gets a checkpoint's tensor by name."""
        for name, theirs in self._theirs.items():
            yield name, read(theirs)
