"""Batches made ahead, so that a step does not wait for its data."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import torch

from wenfang.train.objective import Batch


class Loader:
    """Makes the next step's batches in a thread while this step is computed.

    Args:
        make: the batches of a step, a function of its number alone.
        device: where the step is computed; batches are copied there while it works on the last ones.
    """

    def __init__(self, make: Callable[[int], Sequence[Batch]], device: torch.device) -> None:
        self._make, self._device = make, device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._step = -1
        self._next: Future[list[Batch]] | None = None
        self.waited_s = 0.0
        """How long the last `take` had to wait."""

    def take(self, step: int) -> list[Batch]:
        """The batches of `step`; those of the one after it are begun.

        Raises:
            Exception: what `make` raised.
        """
        start = time.monotonic()
        if self._next is None or self._step != step:
            self._next = self._thread.submit(self._ready, step)
        batches = self._next.result()
        self.waited_s = time.monotonic() - start
        self._step, self._next = step + 1, self._thread.submit(self._ready, step + 1)
        return [placed(batch, self._device) for batch in batches]

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _ready(self, step: int) -> list[Batch]:
        batches = list(self._make(step))
        if self._device.type != "cuda":
            return batches
        # Only from pinned memory does a copy run beside the computation.
        return [replace(b, tensors={name: x.pin_memory() for name, x in b.tensors.items()}) for b in batches]


def placed(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`."""
    if device.type == "cpu":
        return batch
    return replace(batch, tensors={name: x.to(device, non_blocking=True) for name, x in batch.tensors.items()})
