"""Runs a recipe: keeps what is unchanged, continues what was interrupted, makes the rest."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from wenfang.core.artifact import Manifest, read_manifest, write_atomically
from wenfang.core.language import say
from wenfang.core.report import Reporter
from wenfang.recipe.check import Recipe
from wenfang.recipe.execution import execute, lock
from wenfang.recipe.figures import duration, size
from wenfang.recipe.plan import Plan, PlannedStep, State, look, make_plan

RUN_FILE = "run.json"
LOCK_FILE = ".lock"


@dataclass(frozen=True)
class StepResult:
    """What became of one stage of a recipe."""

    id: str
    out: Path
    kept: bool
    """It was there already, unchanged, and was not run again."""
    manifest: Manifest


def run_recipe(recipe: Recipe, *, runs: Path, report: Reporter) -> list[StepResult]:
    """Run what a recipe has left to do, one stage after another.

    Args:
        recipe: a checked recipe.
        runs: outputs go to `runs/<recipe>/<stage>/<fingerprint>`, their list to `runs/<recipe>/run.json`.
        report: where people are told how it goes.

    Raises:
        BusyError: another process is running the same recipe into the same folder.
        CapacityError: the machine has not the memory or disk for it; nothing was run.
        WenfangError: what a stage raises; finished stages stay, and the next run continues.
    """
    folder = runs / recipe.name
    with lock(folder / LOCK_FILE, str(folder)):
        plan = make_plan(recipe, runs)
        plan.check()
        _announce(plan, report)
        results: list[StepResult] = []
        for number, step in enumerate(plan.steps, start=1):
            results.append(_run_step(step, f"[{number}/{len(plan.steps)}]", report))
            _write_run_file(plan, results)
        return results


def _announce(plan: Plan, report: Reporter) -> None:
    forecasts = plan.forecasts.values()
    if forecasts:
        seconds = duration(sum(forecast.seconds for forecast in forecasts))
        memory = size(max(forecast.memory_bytes for forecast in forecasts))
        report.notice(
            say(
                zh=f"{plan.recipe}：要跑 {len(forecasts)} 個階段，預計 {seconds}，記憶體 {memory}。",
                en=f"{plan.recipe}: {len(forecasts)} stages to run, about {seconds} and {memory} of memory.",
            )
        )


def _run_step(step: PlannedStep, number: str, report: Reporter) -> StepResult:
    label = f"{number} {step.id} ({step.stage.name})"
    state, problem = look(step.out, step.stage, step.fingerprint)
    if state is State.KEPT:
        report.notice(label + say(zh=" 未變，沿用。", en=" unchanged, kept."))
        return StepResult(step.id, step.out, kept=True, manifest=read_manifest(step.out))
    report.notice(label)
    if state is State.DAMAGED:
        report.warn(say(zh=f"先前的產出已損壞，重新製作：{problem}", en=f"Making a damaged output again: {problem}"))
    manifest = execute(step.stage, step.config, step.out, report, inputs=step.inputs)
    return StepResult(step.id, step.out, kept=False, manifest=manifest)


def _write_run_file(plan: Plan, results: Iterable[StepResult]) -> None:
    """Say where the outputs of this run are, for the studio and for people."""
    stages = {
        result.id: {
            "uses": result.manifest.stage,
            "kind": result.manifest.kind,
            "path": str(result.out.relative_to(plan.folder)),
            "seconds": result.manifest.seconds,
            "summary": result.manifest.summary,
        }
        for result in results
    }
    content = json.dumps({"recipe": plan.recipe, "stages": stages}, ensure_ascii=False, indent=1)
    write_atomically(plan.folder / RUN_FILE, content.encode())
