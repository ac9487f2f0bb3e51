"""The loop's promises: accumulation, early stopping, bad steps."""

import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

from wenfang.core.errors import WenfangError
from wenfang.core.report import Reporter
from wenfang.model import Decoder
from wenfang.model.memory import Memory
from wenfang.train import loop
from wenfang.train.config import OptimizerConfig, TrainConfig
from wenfang.train.dropout import add_dropout
from wenfang.train.loop import train
from wenfang.train.objective import Batch, Loss, NextToken, Rows, Task, next_token
from wenfang.train.packing import IGNORED, batch_rows, pack
from wenfang.train.parallel import Workers

Make = Callable[[], Decoder]
Configure = Callable[..., TrainConfig]


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def run(model: Decoder, task: Task, config: TrainConfig, folder: Path) -> dict[str, int | float | str]:
    folder.mkdir(exist_ok=True)
    return train(model, task, config, folder, Reporter(metrics_path=folder / "metrics.jsonl"), label="")


def test_accumulation_is_a_larger_batch(tiny_model: Make, tiny_config: Configure, tmp_path: Path) -> None:
    # Rows that learn from 1 to 8 tokens: averaging batch means instead of tokens would be far off.
    documents = [([i % 23] * 9, [n >= 8 - i % 8 for n in range(9)]) for i in range(48)]
    rows = Rows(pack(documents, 8), 1.0)
    task = Task(rows, rows, NextToken(torch.float32), measure=NextToken(torch.float32))
    results = []
    for batch, accumulate in ((8, 1), (2, 4)):
        model = tiny_model()
        settings = {"steps": 10, "batch": batch, "accumulate": accumulate, "context": 8}
        adam = OptimizerConfig(name="adamw", lr=0.001)  # In fp32 throughout.
        run(model, task, tiny_config(**settings, optimizer=adam), tmp_path / str(batch))
        results.append((losses(tmp_path / str(batch)), model.state_dict()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    for name, weight in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], weight, rtol=1e-4, atol=1e-5)


def test_early_stopping_writes_the_best_weights(
    task: Task, tiny_model: Make, tiny_config: Configure, tmp_path: Path
) -> None:
    # Validation data whose every next token is the training data's previous one: learning makes it worse.
    backwards = [(list(range(22, 22 - n, -1)), [True] * n) for n in (9, 12, 15, 20)]
    spoilt = replace(task, validation=Rows(pack(backwards, 32), 1.0))
    model = tiny_model()
    summary = run(model, spoilt, tiny_config(validate_every=5, patience=2), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    measured = {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
    best = min(measured, key=measured.__getitem__)
    assert max(measured) == best + 10 < 60
    assert summary["best_step"] == best
    assert summary["validation_loss"] == pytest.approx(measured[best], abs=1e-4)
    again = run(model, spoilt, tiny_config(steps=1, optimizer=OptimizerConfig(lr=1e-12)), tmp_path / "again")
    assert again["validation_loss"] == pytest.approx(measured[best], abs=1e-4)


@dataclass(frozen=True)
class Poisoned:
    """Next-token loss times the batch's own factor."""

    def __call__(self, model: Decoder, *, factor: Tensor, **tensors: Tensor) -> Loss:
        loss = NextToken(torch.float32)(model, **tensors).total
        return Loss(loss * factor.mean(), {"unscaled": loss.detach()})


@dataclass(frozen=True)
class PoisonedRows:
    """Rows of which one makes the loss of its batch `factor` times larger."""

    rows: Rows
    bad: int
    factor: float
    characters_per_token: None = None
    bytes_per_token: None = None

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: np.ndarray) -> Batch:
        batch = self.rows.batch(rows)
        factors = torch.tensor([self.factor if row == self.bad else 1.0 for row in rows])
        return replace(batch, tensors=batch.tensors | {"factor": factors})


@pytest.mark.parametrize(("factor", "spike"), [(math.nan, None), (math.inf, None), (1e3, 20)])
def test_a_bad_step_is_skipped_and_its_batch_kept(
    task: Task, tiny_model: Make, tiny_config: Configure, tmp_path: Path, factor: float, spike: float | None
) -> None:
    assert isinstance(task.training, Rows)
    data = PoisonedRows(task.training, bad=3, factor=factor)
    task = Task(data, task.validation, Poisoned(), measure=NextToken(torch.float32))
    model = tiny_model()
    summary = run(model, task, tiny_config(steps=80, bad_step="skip", spike=spike), tmp_path)
    assert all(weight.isfinite().all() for weight in model.parameters())
    kept = sorted((tmp_path / "bad_steps").iterdir())
    assert summary["skipped_steps"] == len(kept) > 0
    for path in kept:
        assert not load_file(path)["factor"].eq(1).all()
        assert load_file(path)["ids_BT"].shape == (4, 32)
    assert all(map(math.isfinite, losses(tmp_path)))
    assert "unscaled" in (tmp_path / "metrics.jsonl").read_text()


def test_a_bad_step_stops_the_run(task: Task, tiny_model: Make, tiny_config: Configure, tmp_path: Path) -> None:
    assert isinstance(task.training, Rows)
    data = PoisonedRows(task.training, bad=3, factor=math.nan)
    task = Task(data, task.validation, Poisoned(), measure=NextToken(torch.float32))
    with pytest.raises(WenfangError, match=r"Step \d+ has a bad loss, nan .*bad_steps/step-.*Lower the learning rate"):
        run(tiny_model(), task, tiny_config(), tmp_path)
    assert list((tmp_path / "bad_steps").iterdir())


def test_skipping_everything_stops(task: Task, tiny_model: Make, tiny_config: Configure, tmp_path: Path) -> None:
    settings = tiny_config(bad_step="skip", optimizer=OptimizerConfig(lr=1e30, warmup=0))
    with pytest.raises(WenfangError, match="bad loss"):
        run(tiny_model(), task, settings, tmp_path)
    assert len(list((tmp_path / "bad_steps").iterdir())) == 10


def test_the_batch_that_is_kept_is_that_of_all_processes(
    task: Task, tiny_model: Make, tiny_config: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class First(Workers):
        def share(self, rows: np.ndarray) -> np.ndarray:
            return rows[: len(rows) // 2]

    monkeypatch.setattr(loop, "join", First)
    with pytest.raises(WenfangError, match="bad loss"):
        run(tiny_model(), task, tiny_config(optimizer=OptimizerConfig(lr=1e30, warmup=0)), tmp_path)
    (path,) = (tmp_path / "bad_steps").iterdir()
    assert isinstance(task.training, Rows)
    wanted = batch_rows(len(task.training), 4, int(path.stem.removeprefix("step-")) - 1, seed=1)
    assert torch.equal(load_file(path)["ids_BT"], task.training.batch(wanted).tensors["ids_BT"])


def test_counts_are_learned_tokens(task: Task) -> None:
    assert isinstance(task.training, Rows)
    batch = task.training.batch(np.array([0, 1]))
    targets = task.training.packed.targets_NT[:2]
    assert batch.count == (targets != IGNORED).sum()
    assert batch.tokens == (task.training.packed.documents_NT[:2] >= 0).sum()


WITHOUT_EFFECT = {"clip": 1e9, "floor": 0.0}
OPTIONS: list[dict[str, object]] = [
    {"dropout": 0.3},
    {"label_smoothing": 0.1},
    {"z_loss": 0.1},
    {"accumulate": 2},
    {"seed": 2},
    *({"optimizer": {"name": "adamw", **WITHOUT_EFFECT, **change}} for change in (
        {"clip": 1e-7},
        {"weight_decay": 0.5},
        {"layer_decay": 0.5},
        {"lr": 0.01},
        {"warmup": 0.9},
        {"floor": 0.9},
        {"decay": 0.9},
        {"schedule": "linear"},
        {"schedule": "cosine"},
        {"schedule": "constant"},
        {"name": "muon"},
        {"name": "adam8bit"},
        {"name": "lion"},
        {"name": "galore"},
        {"name": "galore", "galore_rank": 2},
        {"name": "galore", "galore_refresh": 1},
        {"name": "galore", "galore_scale": 0.5},
    )),
]  # fmt: skip


def test_no_option_does_nothing(task: Task, tiny_model: Make, tiny_config: Configure, tmp_path: Path) -> None:
    """Each gives other weights than the plain run, and than any other."""
    plain: dict[str, object] = {"optimizer": {"name": "adamw", **WITHOUT_EFFECT}}
    seen: dict[str, bytes] = {}
    for number, change in enumerate([{}, *OPTIONS]):
        config, model = tiny_config(steps=4, **(plain | change)), tiny_model()
        run(model, next_token(task.training, task.validation, config), config, tmp_path / str(number))
        seen[str(change)] = b"".join(weight.detach().numpy().tobytes() for weight in model.parameters())
    assert len(set(seen.values())) == len(seen) == len(OPTIONS) + 1


def test_dropout_is_torch_s_on_what_each_sublayer_adds_and_ends_with_training(tiny_model: Make) -> None:
    model, ids_BT = tiny_model(), torch.arange(23).repeat(20, 1)
    positions_BT = torch.arange(23).expand(20, -1)
    with torch.no_grad():
        for weight in model.parameters():  # Sublayers begin by adding nothing.
            weight.normal_()
    before = model.eval()(ids_BT, positions_BT, Memory())
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    sublayers = [block.get_submodule(name) for block in model.layers for name in ("mixer", "mlp")]
    for module in sublayers:
        module.register_forward_hook(lambda module, _, output: seen.update({module: (output, output)}))
    add_dropout(model, 0.25)
    for module in sublayers:
        module.register_forward_hook(lambda module, _, output: seen.update({module: (seen[module][0], output)}))
    model.train()(ids_BT, positions_BT, Memory())
    for module in sublayers:
        whole, left = seen[module]
        assert float(left.eq(0).float().mean()) == pytest.approx(0.25, abs=0.03)  # Of 7,360: 6 standard deviations.
        torch.testing.assert_close(left, torch.where(left == 0, 0.0, whole / 0.75))
    assert torch.equal(model.eval()(ids_BT, positions_BT, Memory()), before)


def test_without_a_compiler_it_trains_and_says_so_once(
    task: Task, tiny_model: Make, tiny_config: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "has_compiler", lambda _: False)
    told = io.StringIO()
    config = tiny_config(steps=2, compile=True)
    summary = train(tiny_model(), task, config, tmp_path, Reporter(console=Console(file=told)), label="")
    assert math.isfinite(summary["validation_loss"])
    assert told.getvalue().count("No C++ compiler found; training uncompiled") == 1
    assert "compiling first" not in told.getvalue()
