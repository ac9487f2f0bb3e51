"""What a run folder holds for people: its newest model, its stages, and the numbers its training wrote down."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ValidationError

from wenfang.core.artifact import MANIFEST, Summary, read_manifest
from wenfang.core.errors import InputError
from wenfang.core.language import say

RUN_FILE = "run.json"
METRICS = "metrics.jsonl"
SILENT_S = 120.0
"""Unfinished work that has measured nothing for this long counts as stopped."""


class FinishedStage(BaseModel):
    """One entry of `run.json`. `path` is relative to the run folder."""

    uses: str
    kind: str
    path: str
    seconds: float
    summary: Summary


class RunFile(BaseModel):
    """The content of `run.json`."""

    recipe: str
    stages: dict[str, FinishedStage]


@dataclass(frozen=True)
class StageView:
    """A stage as it stands: finished, under way, or cut short."""

    name: str
    folder: Path
    uses: str = ""
    seconds: float | None = None
    """Wall time; None while it is not finished."""
    summary: Summary = field(default_factory=dict)
    state: str = "finished"
    """`finished`, `running` or `stopped`."""


@dataclass(frozen=True)
class Found:
    """A model to talk with, and the run or folder its records are in."""

    model: Path
    name: str
    records: Path

    def stages(self) -> list[StageView]:
        """The stages of the run in order, those under way included; of a lone model folder, the one that made it."""
        if self.records == self.model:
            return [_alone(self.model)]
        return _stages_of_run(self.records)


def find_model(path: Path) -> Found:
    """The model in a run folder (of its last stage that makes one), or a model folder or GGUF file itself.

    Raises:
        InputError: neither of the two, or a run that has no model yet.
    """
    if (path / RUN_FILE).is_file():
        run = _read_run(path)
        models = [stage for stage in run.stages.values() if stage.kind == "model"]
        if models:
            return Found(path / models[-1].path, run.recipe, path)
    elif (path / "config.json").is_file():
        return Found(path, path.resolve().name, path)
    elif path.is_file():
        return Found(path, path.stem, path)
    elif not path.is_dir():
        file = path.suffix == ".gguf"
        raise InputError(
            say(
                zh=f"找不到{'檔案' if file else '模型'} {str(path)!r}。請檢查路徑。",
                en=f"No {'file' if file else 'model'} {str(path)!r}. Check the path.",
            )
        )
    elif not any(path.glob("*/*.partial")):
        raise InputError(
            say(
                zh=f"{str(path)!r} 不是模型（沒有 config.json），也不是執行結果（沒有 {RUN_FILE}）。",
                en=f"{str(path)!r} is neither a model (no config.json) nor a run (no {RUN_FILE}).",
            )
        )
    raise InputError(
        say(
            zh=f"{str(path)!r} 還沒有訓練好的模型。請等 `wenfang run` 完成一個模型階段，或再執行一次讓它接續。",
            en=f"{str(path)!r} has no trained model yet. Wait until `wenfang run` has finished one, "
            "or run it again to continue.",
        )
    )


def _read_run(folder: Path) -> RunFile:
    try:
        return RunFile.model_validate_json((folder / RUN_FILE).read_bytes())
    except (OSError, ValidationError):
        raise InputError(
            say(
                zh=f"{str(folder / RUN_FILE)!r} 無法讀取。請再執行一次 `wenfang run` 讓它重寫。",
                en=f"{str(folder / RUN_FILE)!r} cannot be read. Run `wenfang run` again to rewrite it.",
            )
        ) from None


def _stages_of_run(folder: Path) -> list[StageView]:
    """Finished stages in the order of `run.json`; work in progress takes the place of what it will replace."""
    views = {
        name: StageView(name, folder / stage.path, stage.uses, stage.seconds, stage.summary)
        for name, stage in _read_run(folder).stages.items()
    }
    for metrics in sorted(folder.glob(f"*/*.partial/{METRICS}"), key=lambda path: path.stat().st_mtime):
        state = "running" if time.time() - metrics.stat().st_mtime < SILENT_S else "stopped"
        name = metrics.parent.parent.name
        if state == "running" or name not in views:
            uses = views[name].uses if name in views else ""
            views[name] = StageView(name, metrics.parent, uses, state=state)
    return list(views.values())


def _alone(folder: Path) -> StageView:
    if not (folder / MANIFEST).is_file():
        return StageView(folder.resolve().name, folder)
    manifest = read_manifest(folder)
    return StageView(folder.resolve().name, folder, manifest.stage, manifest.seconds, manifest.summary)


class Metrics:
    """The numbers one stage wrote to `metrics.jsonl`, read again only where the file has grown."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.series: dict[str, list[tuple[float, float]]] = {}
        """`(step, value)` by name, in the order written."""

    def refresh(self) -> bool:
        """Read what was added; whether anything was. A file that shrank (a resumed run) is read anew."""
        try:
            size = self._path.stat().st_size
            if size < self._offset:
                self._offset, self.series = 0, {}
            if size == self._offset:
                return False
            with self._path.open("rb") as file:
                file.seek(self._offset)
                added = file.read()
        except (FileNotFoundError, NotADirectoryError):
            # The stage has just finished and its folder got its final name; or a model file, which has no records.
            return False
        whole = added[: added.rfind(b"\n") + 1]  # The last line may still be half-written.
        self._offset += len(whole)
        for line in whole.splitlines():
            self._add(line)
        return bool(whole)

    def _add(self, line: bytes) -> None:
        try:
            values = json.loads(line)
        except ValueError:  # Cut off by a kill; the resumed run measures it again.
            return
        if not isinstance(values, dict) or not isinstance(values.get("step"), int | float):
            return
        for name, value in values.items():
            if name != "step" and isinstance(value, int | float):
                self.series.setdefault(name, []).append((float(values["step"]), float(value)))
