"""The seam between what is learned and how it is trained.

An objective maps a model and a batch to a summed loss and metrics; a data set yields the batches. The loop owns
everything else: accumulation, optimiser, schedule, checkpoints, reporting. Pretraining and fine-tuning differ in their
data alone; a preference or a reinforcement objective brings its own function and tensors.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wenfang.model import Decoder
from wenfang.train.config import TrainConfig
from wenfang.train.loss import cross_entropy_sum
from wenfang.train.packing import IGNORED, Packed
from wenfang.train.placement import choose, native_bf16
from wenfang.train.vocabulary import NewTokens

RowNumbers = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """What one forward pass reads."""

    tensors: dict[str, Tensor]
    """The objective's keyword arguments."""
    count: int
    """What the summed loss is divided by: tokens learned, pairs compared."""
    tokens: int
    """Real positions, for the speed."""


class Dataset(Protocol):
    """Rows to draw batches from."""

    @property
    def characters_per_token(self) -> float | None:
        """Text behind each unit of `Batch.count`; None where the loss is not in nats per token."""

    @property
    def bytes_per_token(self) -> float | None:
        """The same text in bytes of UTF-8."""

    def __len__(self) -> int:
        """Number of rows, which is one epoch."""

    def batch(self, rows: RowNumbers) -> Batch:
        """The given rows as tensors."""


class Loss(NamedTuple):
    """What an objective says of one batch."""

    total: Tensor
    """Summed over the batch's `count`; what is differentiated."""
    metrics: dict[str, Tensor]
    """Further sums over the same, reported as means."""


class Objective(Protocol):
    """A pure function, so that it can be compiled."""

    def __call__(self, model: Decoder, **tensors: Tensor) -> Loss:
        """Loss of the batch made of `tensors`."""


@dataclass(frozen=True)
class Task:
    """What a stage hands to the loop."""

    training: Dataset
    validation: Dataset
    objective: Objective
    measure: Objective
    """What is reported on the validation data: the objective without its regularisers."""
    new_tokens: NewTokens | None = None
    """Whose rows learn before anything else does."""


@dataclass(frozen=True)
class Rows:
    """Packed documents as a data set; characters and bytes are means over the learned tokens."""

    packed: Packed
    characters_per_token: float
    bytes_per_token: float | None = None

    def __len__(self) -> int:
        return len(self.packed)

    @property
    def waste(self) -> float:
        """Share of positions that are padding."""
        return self.packed.waste

    def batch(self, rows: RowNumbers) -> Batch:
        arrays: dict[str, NDArray[np.signedinteger]] = {
            "ids_BT": self.packed.ids_NT,
            "targets_BT": self.packed.targets_NT,
            "documents_BT": self.packed.documents_NT,
            "positions_BT": self.packed.positions_NT,
        }
        tensors = {name: torch.from_numpy(array[rows]).long() for name, array in arrays.items()}
        return Batch(
            tensors=tensors,
            count=int((tensors["targets_BT"] != IGNORED).sum()),
            tokens=int((tensors["documents_BT"] >= 0).sum()),
        )


@dataclass(frozen=True)
class NextToken:
    """Cross-entropy of the next token within each document, in nats; with neighbours where the batch brings them."""

    dtype: torch.dtype
    """Arithmetic of the activations."""
    label_smoothing: float = 0.0
    z_loss: float = 0.0

    def __call__(self, model: Decoder, **tensors: Tensor) -> Loss:
        total = cross_entropy_sum(
            model,
            tensors["ids_BT"],
            tensors["targets_BT"],
            tensors["documents_BT"],
            tensors["positions_BT"],
            self.dtype,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            neighbours_BSNR=tensors.get("neighbours_BSNR"),
        )
        return Loss(total, {})


def next_token(training: Dataset, validation: Dataset, config: TrainConfig) -> Task:
    """The task of pretraining and fine-tuning."""
    dtype = activation_dtype(config)
    learnt = NextToken(dtype, config.label_smoothing, config.z_loss)
    return Task(training, validation, learnt, measure=NextToken(dtype))


def activation_dtype(config: TrainConfig) -> torch.dtype:
    """The arithmetic of a run; `auto` is bfloat16 where the hardware multiplies it natively.

    Raises:
        InputError: the device asked for is not there.
    """
    if config.dtype == "auto":
        return torch.bfloat16 if native_bf16(choose(config.device)) else torch.float32
    return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
