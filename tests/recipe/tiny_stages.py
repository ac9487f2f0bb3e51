"""Stages small enough to watch: they write text, count how often they ran, and one is slow and resumable."""

import os
import time
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from wenfang.core.artifact import Summary, check_artifact, write_atomically
from wenfang.core.config import Config, Corpus, ModelFolder, Source
from wenfang.core.errors import DataError, InputError
from wenfang.core.forecast import Forecast
from wenfang.core.report import Reporter
from wenfang.recipe.stages import Stage

RAN: list[str] = []
"""Names of the stages that ran in this process, in order."""

RECIPE = """\
name: poet
stages:
  corpus:
    uses: tiny.corpus
    with:
      source: verse.txt
  base:
    uses: tiny.model
    with:
      corpus: ${corpus}
      epochs: 2
  tuned:
    uses: tiny.model
    with:
      corpus: ${corpus}
      base: ${base}
"""

SLOW = """\
name: slow
stages:
  corpus: {uses: tiny.corpus, with: {source: verse.txt}}
  slow: {uses: tiny.slow, with: {corpus: "${corpus}", steps: 12}}
  tuned: {uses: tiny.model, with: {corpus: "${corpus}", base: "${slow}"}}
"""


class CorpusConfig(Config):
    """Make a tiny corpus."""

    source: Source
    """The raw text."""
    more: tuple[Source, ...] = ()
    repeat: int = Field(default=1, ge=1)
    """How often the text is repeated."""
    script: Literal["traditional", "simplified"] = "traditional"
    title: str = ""


class Shape(Config):
    dim: int = Field(default=8, gt=0, multiple_of=2)
    deep: bool = False


class ModelConfig(Config):
    """Make a tiny model.

    It remembers the corpus `epochs` times.
    """

    corpus: Corpus
    """What it learns from."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the corpus."""
    rate: float = Field(default=1e-3, gt=0)
    base: ModelFolder | None = None
    """A model to start from."""
    shape: Shape = Shape()
    memory_bytes: int = 1_000_000
    disk_bytes: int = 1_000

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        if self.epochs > 100:
            raise ValueError(f"epochs ({self.epochs}) would take for ever; use at most 100")
        if self.rate > 10:
            raise InputError(f"rate {self.rate} explodes")
        return self


class SlowConfig(Config):
    """Make a model step by step, with a checkpoint after each."""

    corpus: Corpus
    steps: int = 10
    step_s: float = 0.03


class BrokenConfig(Config):
    how: Literal["data", "bug", "disk"] = "data"


def corpus(config: CorpusConfig, out: Path, report: Reporter) -> Summary:
    RAN.append("corpus")
    text = "".join(path.read_text(encoding="utf-8") for path in (config.source, *config.more)) * config.repeat
    (out / "train.txt").write_text(text, encoding="utf-8")
    return {"characters": len(text)}


def model(config: ModelConfig, out: Path, report: Reporter) -> Summary:
    RAN.append("model")
    check_artifact(config.corpus, "corpus")
    text = (config.corpus / "train.txt").read_text(encoding="utf-8") * config.epochs
    if config.base is not None:
        check_artifact(config.base, "model")
        text = (config.base / "model.txt").read_text(encoding="utf-8") + text
    report.metric(step=1, loss=0.5)
    (out / "model.txt").write_text(text, encoding="utf-8")
    return {"loss": 0.51234567, "characters": len(text), "grade": "甲"}


def slow(config: SlowConfig, out: Path, report: Reporter) -> Summary:
    """Each step is appended to the file TINY_LOG names, so a test can count steps over several processes."""
    RAN.append("slow")
    text = (config.corpus / "train.txt").read_text(encoding="utf-8")
    checkpoint = out / "checkpoint.txt"
    done = int(checkpoint.read_text()) if checkpoint.exists() else 0
    for step in range(done, config.steps):
        time.sleep(config.step_s)
        with Path(os.environ["TINY_LOG"]).open("a") as log:
            log.write(f"{step}\n")
        write_atomically(checkpoint, str(step + 1).encode())
    (out / "model.txt").write_text(text * config.steps, encoding="utf-8")
    checkpoint.unlink(missing_ok=True)
    return {"steps": config.steps}


def broken(config: BrokenConfig, out: Path, report: Reporter) -> Summary:
    RAN.append("broken")
    if config.how == "data":
        raise DataError("the corpus is empty")
    if config.how == "disk":
        raise OSError(28, "No space left on device", str(out / "model.safetensors"))
    raise KeyError("a mistake\nof ours")


def light(config: Config) -> Forecast:
    return Forecast(seconds=1.0, memory_bytes=1_000_000, disk_bytes=1_000)


def model_forecast(config: ModelConfig) -> Forecast:
    return Forecast(seconds=90.0, memory_bytes=config.memory_bytes, disk_bytes=config.disk_bytes)


def _stage(name: str, kind: str, config: str, forecast: str = "light", version: int = 1) -> Stage:
    here = "tiny_stages"
    return Stage(
        name=f"tiny.{name}",
        kind=kind,
        config=f"{here}:{config}",
        run=f"{here}:{name}",
        forecast=f"{here}:{forecast}",
        version=version,
    )


TINY = {
    stage.name: stage
    for stage in (
        _stage("corpus", "corpus", "CorpusConfig"),
        _stage("model", "model", "ModelConfig", "model_forecast"),
        _stage("slow", "model", "SlowConfig"),
        _stage("broken", "model", "BrokenConfig"),
    )
}
