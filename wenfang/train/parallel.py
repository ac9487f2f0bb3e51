"""Data parallelism: processes that share each step's rows and stay equal to one process with all of them.

Every process reads its share of the rows and adds up its gradients with the others'; it holds the whole model and its
optimisers, or a part of each (`sharding`). Sums, not means, are exchanged and divided by the global token count, so
that shares of any size are exact. Only process 0 reports and writes; it hands what it read from a checkpoint to the
others, however many they are.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from wenfang.core.errors import InputError, WenfangError
from wenfang.core.language import say


class Workers:
    """The processes of one run; a single one exchanges nothing.

    Args:
        rank: number of this process, from 0.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def first(self) -> bool:
        """Whether this is the process that reports and writes."""
        return self.rank == 0

    def check_batch(self, batch: int) -> None:
        """Raises:
        InputError: there are fewer rows in a batch than processes.
        """
        if batch < self.size:
            raise InputError(
                say(
                    zh=f"batch={batch} 不夠 {self.size} 個行程分。請加大 batch 或減少行程。",
                    en=f"batch={batch} cannot be shared by {self.size} processes. Raise batch or use fewer of them.",
                )
            )

    def share(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """This process's part of a batch; shares differ by at most one row."""
        return np.array_split(rows, self.size)[self.rank]

    def sums(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over all processes."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        with _told():
            dist.all_reduce(sums)
        return [float(value) for value in sums]

    def any(self, condition: bool) -> bool:
        """Whether the condition holds in any process."""
        return self.sums([float(condition)])[0] > 0

    def add_gradients(self, model: nn.Module) -> None:
        """Replace each gradient, and each count of an expert's tokens, by its sum over all processes. Gradients in
        parts are sums already."""
        if self.size == 1:
            return
        gradients = (weight.grad for weight in model.parameters() if weight.grad is not None)
        found = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
        found += [buffer for name, buffer in model.named_buffers() if name.endswith("load_E")]
        if not found:
            return
        flat = torch.cat([tensor.flatten() for tensor in found])  # One message instead of hundreds.
        with _told():
            dist.all_reduce(flat)
        for tensor, part in zip(found, flat.split([tensor.numel() for tensor in found]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def from_first(self, value: Any) -> Any:
        """A JSON value as process 0 has it."""
        if self.size == 1:
            return value
        content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        length = torch.tensor([len(content)])
        with _told():
            dist.broadcast(length, 0)
            content = content if self.first else torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(content, 0)
        return json.loads(bytes(content.tolist()))

    def tensors_from_first(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Process 0's CPU tensors by name, one after another, whatever this process has."""
        if self.size == 1:
            yield from tensors.items()
            return
        layout = self.from_first({name: [str(t.dtype), list(t.shape)] for name, t in tensors.items()})
        for name, (dtype, shape) in layout.items():
            kind = getattr(torch, dtype.removeprefix("torch."))
            tensor = tensors[name].contiguous() if self.first else torch.empty(shape, dtype=kind)
            with _told():
                dist.broadcast(tensor, 0)
            yield name, tensor


ALONE = Workers()


def rank() -> int:
    """This process's number as torchrun gave it; 0 outside torchrun."""
    return int(os.environ.get("RANK", "0"))


def sizes() -> tuple[int, int]:
    """How many processes torchrun started in all, and how many of them on this machine; 1 and 1 outside torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def join() -> Workers:
    """The processes that torchrun (or `--nproc`) started, met once; one alone without it.

    Raises:
        WenfangError: the others cannot be reached.
    """
    size, _ = sizes()
    if size == 1:
        return ALONE
    if not dist.is_initialized():
        with _told():
            # Numbers of the loop go between processors, gradients between where they are.
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    return Workers(rank(), size)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Raises:
    WenfangError: another process has ended, which torch tells as a broken connection.
    """
    try:
        yield
    except RuntimeError as error:
        raise WenfangError(
            say(
                zh="另一個訓練行程已結束，訓練停止。再執行同一個指令就會從最後的檢查點接續。",
                en="Another training process has ended, so training stops. Run the same command again to continue from "
                "the last checkpoint.",
            )
        ) from error
