"""What a plan keeps, what it makes again, and what it refuses for want of memory or disk."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from tiny_stages import RAN, RECIPE, TINY, ModelConfig

from wenfang.core.errors import CapacityError
from wenfang.core.report import Reporter
from wenfang.recipe import Plan, Stage, capacity, load_recipe, make_plan, run_recipe
from wenfang.recipe.execution import partial_folder
from wenfang.recipe.plan import State
from wenfang.recipe.tables import plan_table

Write = Callable[[str], Path]
RUNS = Path("runs")


def _plan(path: Path, *overrides: str, stages: dict[str, Stage] = TINY) -> Plan:
    return make_plan(load_recipe(path, overrides, stages=stages), RUNS)


def _run(path: Path, *overrides: str) -> None:
    run_recipe(load_recipe(path, overrides, stages=TINY), runs=RUNS, report=Reporter(console=Console(quiet=True)))


def _states(plan: Plan) -> list[str]:
    return [step.state.value for step in plan.steps]


def test_outputs_and_inputs_are_known_before_anything_exists(write: Write) -> None:
    plan = _plan(write(RECIPE))
    corpus, base, tuned = plan.steps
    assert base.out == Path("runs/poet/base") / base.fingerprint
    assert isinstance(tuned.config, ModelConfig)
    assert tuned.config.corpus == corpus.out
    assert tuned.inputs == {"corpus": corpus.fingerprint, "base": base.fingerprint}
    assert not RUNS.exists()


def test_what_was_made_is_kept_and_only_what_depends_on_a_change_is_not(write: Write, place: Path) -> None:
    path = write(RECIPE)
    assert _states(_plan(path)) == ["new", "new", "new"]
    _run(path)
    assert _states(_plan(path)) == ["kept", "kept", "kept"]
    assert _states(_plan(path, "base.epochs=3")) == ["kept", "new", "new"]
    assert _states(_plan(path, "tuned.rate=0.5")) == ["kept", "kept", "new"]
    assert _states(_plan(path, "base.epochs=2")) == ["kept", "kept", "kept"]
    (place / "verse.txt").write_text("疑是地上霜", encoding="utf-8")
    assert _states(_plan(path)) == ["new", "new", "new"]
    (place / "verse.txt").write_text("床前明月光", encoding="utf-8")
    assert _states(_plan(path)) == ["kept", "kept", "kept"]


def test_a_source_is_known_by_its_content_not_its_name(write: Write, place: Path) -> None:
    path = write(RECIPE)
    _run(path)
    (place / "copy.txt").write_text("床前明月光", encoding="utf-8")
    assert _states(_plan(path, "corpus.source=copy.txt")) == ["kept", "kept", "kept"]
    assert _states(_plan(path, "corpus.more=[copy.txt]")) == ["new", "new", "new"]


def test_newer_code_makes_its_stages_again(write: Write) -> None:
    path = write(RECIPE)
    _run(path)
    newer = {**TINY, "tiny.model": replace(TINY["tiny.model"], version=2)}
    assert _states(_plan(path, stages=newer)) == ["kept", "new", "new"]


@pytest.mark.parametrize("harm", ["truncate", "remove", "manifest", "other", "no manifest"])
def test_a_damaged_output_is_noticed(write: Write, harm: str) -> None:
    path = write(RECIPE)
    _run(path)
    out = _plan(path).steps[1].out
    if harm == "truncate":
        (out / "model.txt").write_text("床")
    elif harm == "remove":
        (out / "model.txt").unlink()
    elif harm == "manifest":
        (out / "wenfang.json").write_text("{")
    elif harm == "no manifest":
        (out / "wenfang.json").unlink()
    else:
        manifest = json.loads((out / "wenfang.json").read_text())
        (out / "wenfang.json").write_text(json.dumps({**manifest, "fingerprint": "0" * 16}))
    plan = _plan(path)
    assert _states(plan) == ["kept", "damaged", "kept"]
    assert plan.steps[1].problem


def test_work_in_progress_is_told_from_work_not_begun(write: Write) -> None:
    path = write(RECIPE)
    out = _plan(path).steps[0].out
    out.with_name(out.name + ".partial").mkdir(parents=True)
    assert _states(_plan(path)) == ["started", "new", "new"]


def test_more_memory_or_disk_than_there_is_is_refused(write: Write) -> None:
    path = write(RECIPE)
    with pytest.raises(CapacityError, match=r"base needs about 1,000,000,000.0 GB of memory; this machine has"):
        _plan(path, "base.memory_bytes=1000000000000000000").check()
    with pytest.raises(CapacityError, match=r"about 1,000,000,000.0 GB of disk; .* are free at 'runs/poet'"):
        _plan(path, "base.disk_bytes=1000000000000000000").check()
    with pytest.raises(CapacityError):
        _run(path, "base.memory_bytes=1000000000000000000")
    assert not RAN
    _plan(path).check()


def test_what_an_interrupted_run_left_is_disk_that_it_has_already(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(RECIPE)
    plan = _plan(path)
    monkeypatch.setattr(capacity, "free_disk_bytes", lambda _: sum(f.disk_bytes for f in plan.forecasts.values()) - 500)
    with pytest.raises(CapacityError, match="of disk"):
        plan.check()
    left = partial_folder(plan.steps[1].out, plan.steps[1].fingerprint) / "checkpoints/step-00000001.safetensors"
    left.parent.mkdir(parents=True)
    left.write_bytes(bytes(600))
    plan.check()


def test_what_is_kept_needs_nothing_more(write: Write) -> None:
    path = write(RECIPE)
    _run(path)
    plan = _plan(path)
    assert plan.forecasts == {}
    assert all(step.forecast is None and step.state is State.KEPT for step in plan.steps)


def test_the_table_shows_each_stage_its_cost_and_totals(write: Write) -> None:
    path = write(RECIPE)
    _run(path)
    console = Console(file=io.StringIO(), record=True, width=120)
    console.print(plan_table(_plan(path, "base.epochs=4", "base.memory_bytes=2000000000")))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert lines[1] == ["corpus", "tiny.corpus", "kept", "–", "–", "–"]
    assert lines[2] == ["base", "tiny.model", "to", "run", "1", "min", "30", "s", "2.0", "GB", "1.0", "kB"]
    assert lines[-1] == ["total", "3", "min", "00", "s", "2.0", "GB", "2.0", "kB"]
