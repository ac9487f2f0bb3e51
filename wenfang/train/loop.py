"""The training loop: accumulation, optimiser, schedule, checkpoints and reporting, the same for every objective."""

import contextlib
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from wenfang.core.allocator import keep_freed_memory, return_freed_blocks
from wenfang.core.artifact import Summary
from wenfang.core.hardware import matmul_flops
from wenfang.core.language import say
from wenfang.core.report import Reporter, Track
from wenfang.model import Decoder
from wenfang.train.checkpoint import Checkpoints, Progress
from wenfang.train.config import TrainConfig
from wenfang.train.dropout import add_dropout
from wenfang.train.guard import Guard
from wenfang.train.interruption import Interruption
from wenfang.train.loader import Loader
from wenfang.train.loader import placed as on_device
from wenfang.train.meter import Meter, bits_of
from wenfang.train.objective import Batch, Dataset, Objective, Task, activation_dtype
from wenfang.train.optimizer import clip_gradients, make_optimizers
from wenfang.train.packing import batch_rows
from wenfang.train.parallel import ALONE, Workers, join
from wenfang.train.placement import choose, has_compiler, keep_compiled, peak_bytes, placed
from wenfang.train.recompute import recompute_blocks
from wenfang.train.schedule import rate, set_rate
from wenfang.train.sharding import fill, rest, sharded

LOG_EVERY = 10
"""Steps between two lines of metrics."""
VALIDATION_BATCHES = 4


def train(model: Decoder, task: Task, config: TrainConfig, out: Path, report: Reporter, *, label: str) -> Summary:
    """Train `model` in place for `config.steps`, resuming from the checkpoint in `out` if there is one.

    Same config, data and machine give the same weights, interrupted or not. A signal takes effect after the
    running step, with its state saved. Under torchrun the processes share each batch (`parallel`).

    Raises:
        InputError: a batch has fewer rows than there are processes, or the device asked for is not there.
        WenfangError: the loss stopped being a number, or another process ended.
        ModelError: the checkpoint in `out` is of another architecture.
        OSError: a checkpoint cannot be written; those before it are untouched.
    """
    if config.shard:
        return_freed_blocks()
    else:
        keep_freed_memory()
    device = choose(config.device)
    with placed(model, device), contextlib.closing(_Run(model, task, config, out, report, device)) as run:
        run.resume()
        with report.track(label, config.steps) as track, Interruption() as interruption:
            run.train(track, interruption)
        return run.finish()


class _Run:
    """One training run between its first and its last step."""

    def __init__(
        self, model: Decoder, task: Task, config: TrainConfig, out: Path, report: Reporter, device: torch.device
    ) -> None:
        self._model, self._task, self._config, self._report = model, task, config, report
        self._device = device
        self._workers = join()
        self._workers.check_batch(config.batch)
        self._compiled = _can_compile(config, device, report)
        if config.dropout:
            add_dropout(model, config.dropout)
        if config.recompute:
            recompute_blocks(model)
        self._shards = config.shard and self._workers.size > 1
        self._trained = model
        if self._shards:
            self._model = sharded(model, activation_dtype(config), compiled=self._compiled)
        self._objective = self._prepare(task.objective)
        self._measure = self._objective if task.measure == task.objective else self._prepare(task.measure)
        self._optimizers = make_optimizers(self._model, config.optimizer)
        self._loader = Loader(self._batches, device)
        self._checkpoints = Checkpoints(
            out, self._model, self._optimizers, keep=config.keep_checkpoints, report=report, workers=self._workers
        )
        self._out = out
        self._progress = Progress()

    def close(self) -> None:
        """End the threads that make batches and write checkpoints."""
        self._loader.close()
        self._checkpoints.close()

    def resume(self) -> None:
        """Go back to the newest checkpoint, if any."""
        self._progress = self._checkpoints.load()
        step = self._progress.step
        if step:
            self._report.notice(say(zh=f"從第 {step} 步接續", en=f"resuming from step {step}"))
        self._report.rewind(step)
        self._guard = Guard(self._config, self._out, self._progress, self._report)
        flops = self._model.config.training_flops(
            self._config.batch * self._config.accumulate * self._config.context, self._config.context
        )
        (peak,) = self._workers.sums([matmul_flops(activation_dtype(self._config), str(self._device))])
        self._meter = Meter(
            flops, peak, self._task.training, self._progress.losses, memory=lambda: peak_bytes(self._device)
        )

    def train(self, track: Track, interruption: Interruption) -> None:
        """Every step that is left."""
        progress, config = self._progress, self._config
        if progress.step < config.steps and self._compiled:
            track.announce(say(zh="首步先編譯，約半分鐘", en="compiling first, about half a minute"))
        saved = time.monotonic()
        while progress.step < config.steps and not self._stopped():
            track.update(progress.step + 1, self._step())
            progress.step += 1
            if progress.step % LOG_EVERY == 0 or progress.step == config.steps:
                self._log()
            improved = self._due() and self._validate()
            interruption.hold()
            self._checkpoints.check()
            late = self._workers.first and time.monotonic() - saved >= config.checkpoint_every_s
            stops, due = self._workers.sums([interruption.pending is not None, late])
            if stops:
                self._checkpoints.save(progress, wait=True)
                self._workers.any(False)  # None leaves before the state is on the disk.
                interruption.pending = interruption.pending or signal.SIGTERM  # Another process's signal is ours.
                interruption.deliver()
            elif (improved and progress.step < config.steps) or due:
                self._checkpoints.save(progress)
                saved = time.monotonic()

    def finish(self) -> Summary:
        """Choose the weights and say how it went."""
        progress, config = self._progress, self._config
        nats, summary = progress.validation_loss, self._meter.summary()
        if config.patience:
            if progress.best_step != progress.step and self._checkpoints.load_best(progress):
                nats = progress.best_loss
            summary["best_step"] = progress.best_step
        if progress.skipped:
            summary["skipped_steps"] = progress.skipped
        rows = progress.step * config.batch * config.accumulate
        self._checkpoints.check(wait=True)
        if self._shards:
            fill(self._trained, self._model)
        return summary | {
            "validation_loss": round(nats, 4),
            "epochs": round(rows / len(self._task.training), 2),
        }

    def _prepare(self, objective: Objective) -> Objective:
        # Sharded blocks are compiled one by one: gathering their weights is no part of a graph.
        return torch.compile(objective, dynamic=False) if self._compiled and not self._shards else objective

    def _step(self) -> str:
        """One optimiser step; returns the figures for the progress line."""
        progress, config = self._progress, self._config
        set_rate(self._optimizers, rate(progress.step, config.steps, config.optimizer))
        # Whatever is drawn in a step depends on its number alone, so that a resumed run draws the same.
        torch.manual_seed(config.seed * 1_000_003 + progress.step + (self._workers.rank << 40))
        batches = self._loader.take(progress.step)
        count, tokens = self._workers.sums([sum(batch.count for batch in batches), sum(b.tokens for b in batches)])
        count = max(count, 1)
        losses, metrics = list[Tensor](), dict[str, list[Tensor]]()
        for batch in batches:
            total, sums = self._objective(self._model, **batch.tensors)
            mean = total / count
            mean.backward()
            losses.append(mean.detach())
            for name, value in sums.items():
                metrics.setdefault(name, []).append(value / count)
        self._workers.add_gradients(self._model)
        if self._task.new_tokens is not None:
            self._task.new_tokens.learn_alone(self._model, progress.step)
        # Reading a number waits for the device, so all are read once everything is under way.
        loss, *means = self._workers.sums([sum(map(float, values)) for values in (losses, *metrics.values())])
        named = dict(zip(metrics, means, strict=True))
        norm = clip_gradients(self._model, config.optimizer.clip)
        applied = self._guard.allows(loss, norm, lambda: self._batches(progress.step, ALONE))
        for optimizer in self._optimizers:
            if applied:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if not applied:
            self._meter.restart()
            return say(zh="略過", en="skipped")
        self._model.rebalance_experts()
        progress.seconds += self._meter.add(loss, named, int(tokens), waited_s=self._loader.waited_s)
        return self._meter.note()

    def _batches(self, step: int, workers: Workers | None = None) -> Sequence[Batch]:
        """What a step learns from: `accumulate` batches that are together one larger one, or this process's share."""
        workers = workers or self._workers
        config, data = self._config, self._task.training
        rows = batch_rows(len(data), config.batch * config.accumulate, step, config.seed)
        return [data.batch(workers.share(part)) for part in rows.reshape(config.accumulate, config.batch)]

    def _log(self) -> None:
        values = self._meter.window()
        if values:
            lr = self._optimizers[0].param_groups[0]["lr"]
            self._report.metric(step=self._progress.step, lr=lr, **values, seconds=self._progress.seconds)

    def _due(self) -> bool:
        step = self._progress.step
        return step % self._config.validate_every == 0 or step == self._config.steps

    def _validate(self) -> bool:
        """Measure on the validation data; returns whether that is the best so far."""
        progress, data = self._progress, self._task.validation
        if self._config.dropout:  # Otherwise the mode changes nothing but the compiled graph.
            self._model.eval()
        with torch.set_grad_enabled(not self._shards):
            nats = progress.validation_loss = mean_loss(
                self._measure, self._model, data, self._config.batch, workers=self._workers
            )
        rest(self._model)
        self._model.train()
        bits = bits_of(nats, data)
        named = {f"validation_{name}": value for name, value in ({"loss": nats} | bits).items()}
        self._report.metric(step=progress.step, **named)
        self._meter.restart()
        if nats < progress.best_loss:
            progress.best_loss, progress.best_step, progress.waited = nats, progress.step, 0
            return True
        progress.waited += 1
        return False

    def _stopped(self) -> bool:
        patience = self._config.patience
        return bool(patience) and self._progress.waited >= patience


def mean_loss(measure: Objective, model: Decoder, data: Dataset, batch: int, *, workers: Workers = ALONE) -> float:
    """Mean loss on a fixed sample of rows, which `workers` share, where the model is."""
    total, count, device = 0.0, 0, model.embed_tokens.weight.device
    # With gradients on, this is the graph already compiled for training; without, a second compilation.
    for number in range(VALIDATION_BATCHES):
        rows = on_device(data.batch(workers.share(batch_rows(len(data), batch, number, seed=0))), device)
        total, count = total + float(measure(model, **rows.tensors).total.detach()), count + rows.count
    total, whole = workers.sums([total, count])
    return total / max(whole, 1)


def _can_compile(config: TrainConfig, device: torch.device, report: Reporter) -> bool:
    """Whether to compile the step, with what is compiled kept; told where it was asked for and cannot be had."""
    if not config.compile:
        return False
    if has_compiler(device):
        keep_compiled()
        return True
    advice = {
        "cpu": say(
            zh="找不到 C++ 編譯器，改以未編譯方式訓練，約慢一半。安裝 g++ 可加速。",
            en="No C++ compiler found; training uncompiled, about half as fast. Install g++ to speed it up.",
        ),
        "cuda": say(
            zh="找不到 Triton，改以未編譯方式訓練，會慢得多。請安裝 triton。",
            en="Triton is not installed; training uncompiled, much slower. Install triton to speed it up.",
        ),
    }
    unknown = say(
        zh=f"在 {device.type} 上以未編譯方式訓練。", en=f"Training uncompiled, as is the only way on {device.type}."
    )
    report.warn(advice.get(device.type, unknown))
    return False
