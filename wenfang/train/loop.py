"""The training loop: optimiser, schedule, compilation, checkpoints and reporting, the same for every stage."""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from wenfang.core.artifact import Summary
from wenfang.core.errors import WenfangError
from wenfang.core.hardware import detect
from wenfang.core.language import say
from wenfang.core.report import Reporter
from wenfang.model import Decoder
from wenfang.train.checkpoint import drop_checkpoint, load_checkpoint, save_checkpoint
from wenfang.train.config import TrainConfig
from wenfang.train.loss import cross_entropy_sum
from wenfang.train.optimizer import clip_gradients, make_optimizers, rate, set_rate
from wenfang.train.packing import IGNORED, Packed, batch_rows

LOG_EVERY = 10
"""Steps between two lines of metrics; checkpoints and validation fall on the same steps."""
VALIDATION_BATCHES = 4
RowNumbers = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Training or validation rows, and how many characters of text each learned token stands for on average."""

    packed: Packed
    characters_per_token: float


def train(
    model: Decoder, training: Rows, validation: Rows, config: TrainConfig, out: Path, report: Reporter, *, label: str
) -> Summary:
    """Train `model` in place for `config.steps`, resuming from the checkpoint in `out` if there is one.

    Same config, data and machine give the same weights, interrupted or not.

    Raises:
        WenfangError: the loss stopped being a number.
    """
    objective = _Objective(model, config, report)
    optimizers = make_optimizers(model, config.optimizer)
    step, spent = load_checkpoint(out, model, optimizers)
    if step:
        report.notice(say(zh=f"從第 {step} 步接續", en=f"resuming from step {step}"))
    report.rewind(step)
    meter = _Meter(model, config, training.characters_per_token, spent)
    saved = time.monotonic()
    with report.track(label, config.steps) as track:
        if step < config.steps and objective.compiled:
            track.update(step, say(zh="首步先編譯，約半分鐘", en="compiling first, about half a minute"))
        while step < config.steps:
            set_rate(optimizers, config.optimizer, rate(step, config.steps, config.optimizer))
            rows = batch_rows(len(training.packed), config.batch, step, config.seed)
            loss = _step(model, optimizers, objective, training.packed, rows, config.optimizer.clip)
            step += 1
            note = meter.add(loss, training.packed, rows)
            track.update(step, note)
            if step % LOG_EVERY and step != config.steps:
                continue
            report.metric(step=step, lr=optimizers[0].param_groups[0]["lr"], **meter.window())
            if step % config.validate_every == 0 and step != config.steps:
                nats = objective.validate(validation.packed)
                bits = nats / math.log(2) / validation.characters_per_token
                report.metric(step=step, validation_loss=nats, validation_bits_per_character=bits)
            if time.monotonic() - saved >= config.checkpoint_every_s:
                save_checkpoint(out, model, optimizers, step, meter.seconds)
                saved = time.monotonic()
    nats = objective.validate(validation.packed)
    bits = nats / math.log(2) / validation.characters_per_token
    report.metric(step=config.steps, validation_loss=nats, validation_bits_per_character=bits)
    summary = meter.summary() | {
        "validation_loss": round(nats, 4),
        "epochs": round(config.steps * config.batch / len(training.packed), 2),
    }
    drop_checkpoint(out)
    return summary


def activation_dtype(config: TrainConfig) -> torch.dtype:
    """The arithmetic of a run; `auto` is bfloat16 where the processor multiplies it natively."""
    name = config.dtype if config.dtype != "auto" else ("bfloat16" if detect().bf16 else "float32")
    return torch.bfloat16 if name == "bfloat16" else torch.float32


class _Objective:
    """The loss of a batch of packed rows, compiled where there is a compiler."""

    def __init__(self, model: Decoder, config: TrainConfig, report: Reporter) -> None:
        self._model = model
        self._batch = config.batch
        self._dtype = activation_dtype(config)
        self.compiled = config.compile and detect().compiler
        if config.compile and not self.compiled:
            report.warn(
                say(
                    zh="找不到 C++ 編譯器，改以未編譯方式訓練，約慢一半。安裝 g++ 可加速。",
                    en="No C++ compiler found; training uncompiled, about half as fast. Install g++ to speed it up.",
                )
            )
        self._loss = torch.compile(cross_entropy_sum, dynamic=False) if self.compiled else cross_entropy_sum

    def __call__(self, packed: Packed, rows: RowNumbers) -> tuple[Tensor, int]:
        """Summed loss in nats over the chosen rows, and the number of tokens it sums over."""
        ids, targets, documents, positions = (
            torch.from_numpy(array[rows]).long()
            for array in (packed.ids_NT, packed.targets_NT, packed.documents_NT, packed.positions_NT)
        )
        counted = int((targets != IGNORED).sum())
        return self._loss(self._model, ids, targets, documents, positions, self._dtype), counted

    def validate(self, packed: Packed) -> float:
        """Mean nats per learned token on a fixed sample of rows."""
        total, tokens = 0.0, 0
        # With gradients on, this is the graph already compiled for training; without, a second compilation.
        for batch in range(VALIDATION_BATCHES):
            loss, counted = self(packed, batch_rows(len(packed), self._batch, batch, seed=0))
            total, tokens = total + float(loss.detach()), tokens + counted
        return total / max(tokens, 1)


def _step(
    model: Decoder,
    optimizers: list[Optimizer],
    objective: _Objective,
    packed: Packed,
    rows: RowNumbers,
    clip: float,
) -> float:
    """One optimiser step; returns the mean loss in nats per token.

    Raises:
        WenfangError: the loss or gradient is not finite; the weights are left as they were.
    """
    total, counted = objective(packed, rows)
    loss = total / max(counted, 1)
    loss.backward()
    norm = clip_gradients(model, clip)
    if not math.isfinite(norm):
        raise WenfangError(
            say(
                zh="損失或梯度變成 NaN／無限大，訓練停止。請調低學習率後重跑；先前的進度仍在。",
                en="The loss or its gradient became NaN or infinite. Lower the learning rate; earlier work is kept.",
            )
        )
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


class _Meter:
    """Speed and loss of a run, for the progress line, the metrics file and the summary."""

    def __init__(self, model: Decoder, config: TrainConfig, characters_per_token: float, spent: float) -> None:
        self._flops_per_step = model.config.training_flops(config.batch * config.context, config.context)
        self._bits = 1 / math.log(2) / characters_per_token
        self._spent = spent
        self._now = time.monotonic()
        self._losses: list[float] = []
        self._window_s = 0.0
        self._window_tokens = 0
        self._speeds: list[tuple[float, float]] = []

    @property
    def seconds(self) -> float:
        """Seconds of training so far, earlier attempts included."""
        return self._spent

    def add(self, loss: float, packed: Packed, rows: RowNumbers) -> str:
        """Count one step; returns the live figures for the progress line."""
        now = time.monotonic()
        elapsed, self._now = now - self._now, now
        tokens = int((packed.documents_NT[rows] >= 0).sum())
        self._spent += elapsed
        self._losses.append(loss)
        self._window_s += elapsed
        self._window_tokens += tokens
        self._speeds.append((tokens / elapsed, self._flops_per_step / elapsed / 1e9))
        bits = loss * self._bits
        speed, gflops = self._speeds[-1]
        unit = say(zh="位元／字", en="bits/char")
        return f"loss {loss:.3f} · {bits:.3f} {unit} · {speed:,.0f} tokens/s · {gflops:.0f} GFLOP/s"

    def window(self) -> dict[str, float]:
        """Means since the last call."""
        loss = sum(self._losses) / len(self._losses)
        steps = len(self._losses)
        values = {
            "loss": loss,
            "bits_per_character": loss * self._bits,
            "tokens_per_s": self._window_tokens / self._window_s,
            "gflop_per_s": steps * self._flops_per_step / self._window_s / 1e9,
            "seconds": self._spent,
        }
        self._losses, self._window_s, self._window_tokens = [], 0.0, 0
        self._now = time.monotonic()
        return values

    def summary(self) -> Summary:
        """Median speed over the steps of this process, so that compilation does not blur it."""
        if not self._speeds:
            return {}
        middle = len(self._speeds) // 2
        return {
            "tokens_per_s": round(sorted(s for s, _ in self._speeds)[middle]),
            "gflop_per_s": round(sorted(g for _, g in self._speeds)[middle]),
        }
