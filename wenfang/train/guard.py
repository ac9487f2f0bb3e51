"""What happens to a step whose loss is not a number or spikes."""

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from wenfang.core.errors import WenfangError
from wenfang.core.language import say
from wenfang.core.report import Reporter
from wenfang.core.tensors import write_tensors
from wenfang.train.checkpoint import Progress
from wenfang.train.config import TrainConfig
from wenfang.train.objective import Batch

FOLDER = "bad_steps"
REMEMBERED = 50
"""Good losses whose median a spike is measured against."""
MOST_IN_A_ROW = 10
"""Skipped steps after which skipping has evidently not helped."""


class Guard:
    """Judges each step before its update.

    Args:
        config: the policy.
        folder: the stage's output; bad batches are kept in its `bad_steps/`.
        progress: the run's state, which holds the recent losses.
        report: where a skipped step is told.
    """

    def __init__(self, config: TrainConfig, folder: Path, progress: Progress, report: Reporter) -> None:
        self._skip, self._spike = config.bad_step == "skip", config.spike
        self._folder, self._progress, self._report = folder / FOLDER, progress, report

    def allows(self, loss: float, norm: float, batches: Callable[[], Sequence[Batch]]) -> bool:
        """Whether to apply the step, which learned from `batches`, those of other processes included; a refused one
        leaves weights and optimiser as they were.

        Raises:
            WenfangError: the policy is to stop, or too many steps in a row were skipped.
        """
        progress = self._progress
        if math.isfinite(loss) and math.isfinite(norm) and not self._spikes(loss):
            progress.recent = [*progress.recent, loss][-REMEMBERED:]
            progress.skipped_in_a_row = 0
            return True
        path = self._keep(loss, norm, batches())
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        step = progress.step + 1
        if not self._skip or progress.skipped_in_a_row >= MOST_IN_A_ROW:
            raise WenfangError(
                say(
                    zh=f"第 {step} 步的損失 {loss:.4g}（梯度範數 {norm:.4g}）不正常，訓練停止；該批在 {str(path)!r}。"
                    "請調低學習率後重跑；先前的進度仍在。",
                    en=f"Step {step} has a bad loss, {loss:.4g} (gradient norm {norm:.4g}); its batch is kept in "
                    f"{str(path)!r}. Lower the learning rate; earlier work is kept.",
                )
            )
        self._report.warn(
            say(
                zh=f"略過第 {step} 步：損失 {loss:.4g}，梯度範數 {norm:.4g}。該批資料在 {str(path)!r}。",
                en=f"Skipped step {step}: loss {loss:.4g}, gradient norm {norm:.4g}. Its batch is in {str(path)!r}.",
            )
        )
        return False

    def _spikes(self, loss: float) -> bool:
        recent = self._progress.recent
        return self._spike is not None and len(recent) >= REMEMBERED and loss > self._spike * statistics.median(recent)

    def _keep(self, loss: float, norm: float, batches: Sequence[Batch]) -> Path:
        """Write the step's rows, for inspection."""
        self._folder.mkdir(parents=True, exist_ok=True)
        step = self._progress.step + 1
        path = self._folder / f"step-{step:08}.safetensors"
        names = batches[0].tensors
        tensors = {name: torch.cat([batch.tensors[name] for batch in batches]).cpu() for name in names}
        write_tensors(tensors, path, {"step": str(step), "loss": str(loss), "gradient_norm": str(norm)})
        return path
