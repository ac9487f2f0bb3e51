"""Rows of what a model learns now among rows of what it knew before."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from wenfang.train.objective import Batch, RowNumbers, Rows


@dataclass(frozen=True)
class Mixture:
    """All rows of `new`, and after them some of `old`."""

    new: Rows
    old: Rows
    drawn: RowNumbers
    """Rows of `old`."""

    def __len__(self) -> int:
        return len(self.new) + len(self.drawn)

    def batch(self, rows: RowNumbers) -> Batch:
        old = rows >= len(self.new)
        parts = self.new.batch(rows[~old]), self.old.batch(self.drawn[rows[old] - len(self.new)])
        in_order = torch.from_numpy(np.argsort(np.argsort(old, kind="stable")))
        return Batch(
            tensors={name: torch.cat([part.tensors[name] for part in parts])[in_order] for name in parts[0].tensors},
            count=sum(part.count for part in parts),
            tokens=sum(part.tokens for part in parts),
        )

    @property
    def characters_per_token(self) -> float:
        return self._per_token(self.new.characters_per_token, self.old.characters_per_token)

    @property
    def bytes_per_token(self) -> float:
        return self._per_token(self.new.bytes_per_token or math.nan, self.old.bytes_per_token or math.nan)

    @property
    def waste(self) -> float:
        """Share of positions that are padding."""
        return float(np.average((self.new.waste, self.old.waste), weights=(len(self.new), len(self.drawn))))

    def _per_token(self, of_new: float, of_old: float) -> float:
        """A row of `old` counts as its average."""
        tokens = len(self.new) * (1 - self.new.waste), len(self.drawn) * (1 - self.old.waste)
        return float(np.average((of_new, of_old), weights=tokens))


def mix(new: Rows, old: Rows, *, share: float, seed: int) -> Mixture:
    """`new` with as many rows of `old` that they make up `share`; drawn without repetition while there are any left."""
    wanted = max(round(len(new) * share / (1 - share)), 1)
    drawn = np.concatenate(
        [np.random.default_rng((seed, turn)).permutation(len(old)) for turn in range(-(-wanted // len(old)))]
    )
    return Mixture(new, old, drawn[:wanted])
