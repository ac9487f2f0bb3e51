"""What runs measured, handed to the trackers that others look at: TensorBoard and MLflow."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wenfang.core.artifact import MANIFEST, read_manifest
from wenfang.core.errors import InputError
from wenfang.core.language import say

METRICS = "metrics.jsonl"
MOST_AT_ONCE = 1000
"""Metrics that an MLflow server takes in one request."""
LONGEST_VALUE = 6000
"""Characters of a parameter that it takes."""


@dataclass(frozen=True)
class Point:
    """One measured number."""

    name: str
    step: int
    value: float
    time_s: float
    """When, in seconds since 1970: from the training time that stands beside it, or before it."""


@dataclass(frozen=True)
class Measured:
    """What one stage measured."""

    name: str
    points: tuple[Point, ...]
    settings: dict[str, Any]
    """The stage's config; empty while it is unfinished."""


def read_measured(folder: Path) -> list[Measured]:
    """Every stage with numbers below a run folder (`runs/poet`), or of one stage's output alone.

    Raises:
        InputError: there are none.
    """
    if (folder / METRICS).is_file():
        return [_read(folder.resolve().name, folder / METRICS)]
    paths = sorted(folder.glob(f"*/*/{METRICS}"))
    if not paths:
        raise InputError(
            say(
                zh=f"{str(folder)!r} 沒有 {METRICS}。請指定執行結果（runs/…）或一個訓練階段的產出。",
                en=f"{str(folder)!r} has no {METRICS}. Name a run (runs/…) or the output of a training stage.",
            )
        )
    return [_read("/".join(path.parent.parts[-2:]), path) for path in paths]


def to_tensorboard(runs: list[Measured], folder: Path) -> None:
    """Write an event file for each run, in a subfolder of its name.

    Raises:
        InputError: TensorBoard is not installed, or `folder` already holds something.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        raise _not_installed("tensorboard") from None
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            say(
                zh=f"{str(folder)!r} 已有內容；再寫一次會使每個點重複。請另選資料夾。",
                en=f"{str(folder)!r} already holds something; every point would be there twice. Choose another folder.",
            )
        )
    for run in runs:
        with SummaryWriter(str(folder / run.name)) as writer:
            if run.settings:
                writer.add_text("config", f"```json\n{json.dumps(run.settings, ensure_ascii=False, indent=1)}\n```")
            for point in run.points:
                writer.add_scalar(point.name, point.value, point.step, point.time_s)


def to_mlflow(runs: list[Measured], tracking: str, experiment: str) -> None:
    """Add a finished run for each to an experiment, which is made where there is none.

    Args:
        runs: what was measured.
        tracking: MLflow's tracking URI, such as `http://host:5000`, or a folder.
        experiment: its name.

    Raises:
        InputError: MLflow is not installed, or the server refuses.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # It would report each use to its makers.
    try:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException
    except ModuleNotFoundError:
        raise _not_installed("mlflow-skinny") from None
    uri = tracking if "://" in tracking else Path(tracking).resolve().as_uri()
    if uri.startswith("file:"):
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # Plain files are what a user here asks for.
    try:
        client = MlflowClient(uri)
        known = client.get_experiment_by_name(experiment)
        place = known.experiment_id if known else client.create_experiment(experiment)
        for run in runs:
            times = [round(1000 * point.time_s) for point in run.points]
            made = client.create_run(place, start_time=min(times, default=None), run_name=run.name).info.run_id
            numbers = [Metric(p.name, p.value, time, p.step) for p, time in zip(run.points, times, strict=True)]
            for start in range(0, len(numbers), MOST_AT_ONCE):
                client.log_batch(made, metrics=numbers[start : start + MOST_AT_ONCE])
            client.log_batch(made, params=[Param(k, str(v)[:LONGEST_VALUE]) for k, v in run.settings.items()])
            client.set_terminated(made, end_time=max(times, default=None))
    except MlflowException as error:
        why = str(error).splitlines()[0]
        raise InputError(
            say(zh=f"MLflow（{tracking}）拒絕：{why}", en=f"MLflow at {tracking} refused: {why}")
        ) from None


def _read(name: str, path: Path) -> Measured:
    lines = list(_lines(path))
    last = max((line["seconds"] for line in lines if "seconds" in line), default=0.0)
    started, seconds, points = path.stat().st_mtime - last, 0.0, list[Point]()
    for line in lines:
        seconds = line.get("seconds", seconds)
        for key, value in line.items():
            if key != "step":
                points.append(Point(key, int(line["step"]), value, started + seconds))
    folder = path.parent
    settings = read_manifest(folder).config if (folder / MANIFEST).is_file() else {}
    return Measured(name, tuple(points), settings)


def _lines(path: Path) -> Iterator[dict[str, float]]:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
        except ValueError:  # The last line of a running or killed stage may be half-written.
            continue
        if isinstance(values, dict) and "step" in values:
            yield {name: value for name, value in values.items() if isinstance(value, int | float)}


def _not_installed(package: str) -> InputError:
    return InputError(
        say(
            zh=f"沒有安裝 {package}。請執行 pip install 'wenfang[tracking]'。",
            en=f"{package} is not installed. Run pip install 'wenfang[tracking]'.",
        )
    )
