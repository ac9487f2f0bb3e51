"""Checkpoints of a training run: atomic, checksummed, written while training goes on, enough to continue bit for bit.

`checkpoints/step-00000120.safetensors` holds weights and optimiser states; its metadata holds the progress, the
architecture and a SHA-256 over both.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from wenfang.core.artifact import CHECKPOINTS, sync_folder
from wenfang.core.errors import ModelError
from wenfang.core.language import say
from wenfang.core.report import Reporter
from wenfang.core.tensors import write_tensors
from wenfang.train.parallel import ALONE, Workers
from wenfang.train.sharding import like, whole


@dataclass
class Progress:
    """How far a run is: all of its state that is no tensor."""

    step: int = 0
    """Finished optimiser steps."""
    seconds: float = 0.0
    """Training time so far, earlier attempts included."""
    losses: list[float] = field(default_factory=list)
    """Losses of the steps since the last line of metrics."""
    recent: list[float] = field(default_factory=list)
    """Losses of the last good steps, against which a spike shows."""
    skipped: int = 0
    """Steps whose update was left out because their loss was bad."""
    skipped_in_a_row: int = 0
    validation_loss: float = float("nan")
    """Of the last measurement."""
    best_step: int = 0
    """Step of the lowest loss on the validation data so far."""
    best_loss: float = float("inf")
    waited: int = 0
    """Measurements on the validation data since then."""


class Checkpoints:
    """The checkpoints of one run, written by a thread of their own, one at a time.

    Args:
        folder: the stage's output; checkpoints live in its `checkpoints/`.
        model: whose trained weights are kept.
        optimizers: whose states are kept.
        keep: how many of the newest to keep, beside the best.
        report: where a damaged checkpoint is told.
        workers: the processes of the run. The first reads and writes; what it reads, all get.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        *,
        keep: int,
        report: Reporter,
        workers: Workers = ALONE,
    ) -> None:
        self._folder = folder / CHECKPOINTS
        self._model, self._optimizers = model, optimizers
        self._keep, self._report, self._workers = keep, report, workers
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(self, progress: Progress, *, wait: bool = False) -> None:
        """Copy the state now and write it behind the training; `wait` returns when it is on the disk. Every process
        calls this for the same step, as what lies in parts is put together for the first.

        Raises:
            OSError: this write (with `wait`) or the one before failed; older checkpoints are untouched.
        """
        self.check(wait=True)  # One copy in memory at a time.
        tensors: dict[str, Tensor] = {}
        for name, tensor in self._tensors().items():
            gathered = whole(tensor.detach())
            if self._workers.first:
                tensors[name] = gathered.to("cpu", copy=True).contiguous()
        if not self._workers.first:
            return
        metadata = {"architecture": self._architecture(), "progress": json.dumps(dataclasses.asdict(progress))}
        self._pending = self._thread.submit(self._write, progress.step, progress.best_step, tensors, metadata)
        self.check(wait=wait)

    def check(self, *, wait: bool = False) -> None:
        """Raise what went wrong behind the training, if anything.

        Raises:
            OSError: the disk is full or may not be written.
        """
        if self._pending is not None and (wait or self._pending.done()):
            pending, self._pending = self._pending, None
            pending.result()

    def load(self) -> Progress:
        """Restore the newest usable checkpoint in place; where there is none, nothing changes and step is 0.

        Raises:
            ModelError: the checkpoint is of another architecture or another optimiser.
        """
        tensors, progress = self._newest() if self._workers.first else ({}, Progress())
        self._assign(tensors)
        return Progress(**self._workers.from_first(dataclasses.asdict(progress)))

    def load_best(self, progress: Progress) -> bool:
        """Restore the weights of the step with the lowest validation loss; False where they cannot be had."""
        self.check(wait=True)
        path = self._path(progress.best_step)
        restored = self._restore(path) if path.is_file() else None
        tensors = {} if restored is None else restored[0]
        self._assign({name: tensor for name, tensor in tensors.items() if name.startswith("model.")})
        return bool(self._workers.from_first(restored is not None))

    def close(self) -> None:
        """Wait for the writing thread to end."""
        self._thread.shutdown(wait=True)

    def _newest(self) -> tuple[dict[str, Tensor], Progress]:
        for path in reversed(self._paths()):
            restored = self._restore(path)
            if restored is not None:
                return restored
            path.unlink()  # It would count among the newest to keep.
        return {}, Progress()

    def _tensors(self) -> dict[str, Tensor]:
        """What training changes, by name; frozen weights come from the base model again."""
        tensors: dict[str, Tensor] = {f"model.{name}": weight for name, weight in self._trained().items()}
        for number, optimizer in enumerate(self._optimizers):
            for index, weight in enumerate(_weights(optimizer)):
                for key, value in optimizer.state.get(weight, {}).items():
                    tensors[f"optimizer.{number}.{index}.{key}"] = value
        return tensors

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: weight for name, weight in self._model.named_parameters() if weight.requires_grad}

    def _architecture(self) -> str:
        """Names and shapes of all weights and the kind of each optimiser, which a checkpoint must share."""
        weights = {name: list(weight.shape) for name, weight in self._model.state_dict().items()}
        return json.dumps({"weights": weights, "optimizers": [type(o).__name__ for o in self._optimizers]})

    def _write(self, step: int, best: int, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        self._folder.mkdir(exist_ok=True)
        final = self._path(step)
        partial = final.with_name(final.name + ".partial")
        try:
            write_tensors(tensors, partial, metadata | {"sha256": _digest(tensors, metadata)})
        except OSError:
            with contextlib.suppress(OSError):  # Where nothing may be written, this may not be removed either.
                partial.unlink(missing_ok=True)
            raise
        sync_folder(partial)
        partial.replace(final)
        sync_folder(self._folder)
        kept = {*self._paths()[-self._keep :], self._path(best)}
        for path in self._paths():
            if path not in kept:
                path.unlink()

    def _restore(self, path: Path) -> tuple[dict[str, Tensor], Progress] | None:
        """Read one checkpoint; None, with a warning, when it is damaged."""
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
                metadata = dict(file.metadata() or {})
        except (SafetensorError, OSError) as error:
            self._warn(path, str(error))
            return None
        if metadata.pop("sha256", "") != _digest(tensors, metadata):
            self._warn(path, say(zh="校驗碼不符", en="its checksum is wrong"))
            return None
        if metadata["architecture"] != self._architecture():
            raise ModelError(
                say(
                    zh=f"檢查點 {str(path)!r} 屬於另一個架構或最佳化器，不能接續。請換輸出資料夾，或刪除它重新開始。",
                    en=f"The checkpoint {str(path)!r} is of another architecture or optimiser and cannot be continued. "
                    "Choose another output folder, or delete it to start over.",
                )
            )
        return tensors, Progress(**json.loads(metadata["progress"]))

    @torch.no_grad()
    def _assign(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what the first process has read."""
        trained, weights = self._trained(), [_weights(optimizer) for optimizer in self._optimizers]
        for name, value in self._workers.tensors_from_first(tensors):
            kind, _, rest = name.partition(".")
            if kind == "model":
                trained[rest].copy_(like(trained[rest], value))
                continue
            number, index, key = rest.split(".", 2)
            weight = weights[int(number)][int(index)]
            # Not through `load_state_dict`, which would turn quantised states into the weight's dtype.
            self._optimizers[int(number)].state[weight][key] = like(weight, value)

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob("step-*.safetensors"))

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:08}.safetensors"

    def _warn(self, path: Path, why: str) -> None:
        self._report.warn(
            say(
                zh=f"檢查點 {str(path)!r} 已損壞（{why}），改用前一個。",
                en=f"The checkpoint {str(path)!r} is damaged ({why}); using the one before it.",
            )
        )


def _weights(optimizer: Optimizer) -> list[nn.Parameter]:
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 over the metadata and every tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
