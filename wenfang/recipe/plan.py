"""What running a recipe would do: which stages run, which are kept, where outputs go and what it costs."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from wenfang.core.artifact import check_artifact, read_manifest
from wenfang.core.config import Config
from wenfang.core.errors import InputError, RecipeError
from wenfang.core.forecast import Forecast
from wenfang.recipe.capacity import check_capacity
from wenfang.recipe.check import Recipe, Step
from wenfang.recipe.execution import fingerprint_stage, partial_folder
from wenfang.recipe.inputs import input_fingerprints
from wenfang.recipe.stages import Stage


class State(Enum):
    """What stands at a stage's output folder."""

    KEPT = "kept"
    """A whole output of exactly this work: it is not done again."""
    NEW = "new"
    STARTED = "started"
    """An interrupted run left work to continue."""
    DAMAGED = "damaged"
    """An output with files missing or cut off: it is made again."""


@dataclass(frozen=True)
class PlannedStep:
    """One stage of a plan, with its references resolved to folders."""

    id: str
    stage: Stage
    config: Config
    inputs: dict[str, str]
    """Fingerprint of each input, by field."""
    fingerprint: str
    out: Path
    state: State
    problem: str
    """Why a damaged output is so; empty otherwise."""
    forecast: Forecast | None
    """None for an output that is kept."""


@dataclass(frozen=True)
class Plan:
    """The stages of a recipe in the order they run, with everything known about them beforehand."""

    recipe: str
    folder: Path
    """`runs/<recipe>`: each output is at `<folder>/<stage>/<fingerprint>`."""
    steps: tuple[PlannedStep, ...]

    @property
    def forecasts(self) -> dict[str, Forecast]:
        """Expected cost of each stage that will run."""
        return {step.id: step.forecast for step in self.steps if step.forecast is not None}

    def check(self) -> None:
        """Refuse a plan that this machine cannot hold.

        Raises:
            CapacityError: too little memory or disk.
        """
        partial = {step.id: partial_folder(step.out, step.fingerprint) for step in self.steps}
        check_capacity(self.forecasts, self.folder, partial)


def make_plan(recipe: Recipe, runs: Path) -> Plan:
    """Find out what a recipe has left to do, reading only inputs from outside and manifests.

    Raises:
        RecipeError: an input from outside cannot be read, or a stage finds that its config cannot work.
    """
    folder = runs / recipe.name
    outputs: dict[str, Path] = {}
    known: dict[Path, str] = {}
    steps = []
    for step in recipe.steps:
        planned = _plan_step(step, folder, outputs, known)
        outputs[step.id] = planned.out
        known[planned.out] = planned.fingerprint
        steps.append(planned)
    return Plan(recipe.name, folder, tuple(steps))


def look(out: Path, stage: Stage, fingerprint: str) -> tuple[State, str]:
    """What stands at an output folder, and what is wrong with it if it is damaged."""
    if not out.exists():
        return (State.STARTED if partial_folder(out, fingerprint).is_dir() else State.NEW), ""
    try:
        manifest = read_manifest(out)
        check_artifact(out, stage.kind)
    except InputError as error:
        return State.DAMAGED, str(error)
    if manifest.fingerprint != fingerprint:
        return State.DAMAGED, f"{manifest.fingerprint} ≠ {fingerprint}"
    return State.KEPT, ""


def _plan_step(step: Step, folder: Path, outputs: Mapping[str, Path], known: Mapping[Path, str]) -> PlannedStep:
    config = step.config(outputs)
    try:
        inputs = input_fingerprints(config, known)
        fingerprint = fingerprint_stage(step.stage, config, inputs)
        out = folder / step.id / fingerprint
        state, problem = look(out, step.stage, fingerprint)
        forecast = None if state is State.KEPT else step.stage.forecast_function()(config)
    except InputError as error:
        raise RecipeError(f"{step.place()}: {step.id}: {error}") from None
    return PlannedStep(
        id=step.id,
        stage=step.stage,
        config=config,
        inputs=inputs,
        fingerprint=fingerprint,
        out=out,
        state=state,
        problem=problem,
        forecast=forecast,
    )
