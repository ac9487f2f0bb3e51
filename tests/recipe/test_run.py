"""Whole recipes: cached, invalidated, mended, reported — and the same after being killed at any moment."""

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_stages import RAN, RECIPE, SLOW, TINY

import wenfang
from wenfang.core.artifact import read_manifest
from wenfang.core.errors import BusyError, DataError
from wenfang.core.report import Reporter
from wenfang.recipe import StepResult, load_recipe, run_recipe
from wenfang.recipe.execution import lock
from wenfang.recipe.tables import result_table, summary_line

Write = Callable[[str], Path]
RUNS = Path("runs")

RUN_SLOW = """
import sys
from pathlib import Path
from tiny_stages import TINY
from wenfang.core.report import Reporter
from wenfang.recipe import load_recipe, run_recipe
run_recipe(load_recipe(Path(sys.argv[1]), stages=TINY), runs=Path("runs"), report=Reporter())
"""


def _run(path: Path, *overrides: str) -> tuple[list[StepResult], str]:
    """The results, and what was said on the way."""
    RAN.clear()
    console = Console(file=io.StringIO(), record=True, width=200)
    results = run_recipe(load_recipe(path, overrides, stages=TINY), runs=RUNS, report=Reporter(console=console))
    return results, console.export_text()


def test_every_stage_runs_once_and_then_is_kept(write: Write) -> None:
    path = write(RECIPE)
    results, said = _run(path)
    assert RAN == ["corpus", "model", "model"]
    assert (results[2].out / "model.txt").read_text(encoding="utf-8") == "床前明月光" * 3
    assert [result.kept for result in results] == [False, False, False]
    assert said.splitlines() == [
        "poet: 3 stages to run, about 3 min 01 s and 1.0 MB of memory.",
        "[1/3] corpus (tiny.corpus)",
        "[2/3] base (tiny.model)",
        "[3/3] tuned (tiny.model)",
    ]
    again, said = _run(path)
    assert RAN == []
    assert [result.kept for result in again] == [True, True, True]
    assert said.splitlines()[0] == "[1/3] corpus (tiny.corpus) unchanged, kept."
    assert [result.manifest for result in again] == [result.manifest for result in results]


def test_a_change_runs_what_depends_on_it(write: Write) -> None:
    path = write(RECIPE)
    _run(path)
    results, _ = _run(path, "tuned.epochs=3")
    assert RAN == ["model"]
    assert (results[2].out / "model.txt").read_text(encoding="utf-8") == "床前明月光" * 5
    _run(path, "base.epochs=1")
    assert RAN == ["model", "model"]
    _run(path)
    assert RAN == []


def test_the_run_file_lists_what_this_run_made(write: Write) -> None:
    path = write(RECIPE)
    results, _ = _run(path, "base.epochs=3")
    content = json.loads((RUNS / "poet" / "run.json").read_text(encoding="utf-8"))
    assert content["recipe"] == "poet"
    assert list(content["stages"]) == ["corpus", "base", "tuned"]
    base = content["stages"]["base"]
    manifest = results[1].manifest
    assert base == {
        "uses": "tiny.model",
        "kind": "model",
        "path": f"base/{manifest.fingerprint}",
        "seconds": manifest.seconds,
        "summary": manifest.summary,
    }
    assert (RUNS / "poet" / base["path"] / "model.txt").is_file()


def test_a_damaged_output_is_mended_with_a_warning(write: Write) -> None:
    path = write(RECIPE)
    results, _ = _run(path)
    damaged = results[1].out / "model.txt"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:5])
    _, said = _run(path)
    assert RAN == ["model"]
    assert damaged.read_bytes() == whole
    assert f"⚠ Making a damaged output again: '{damaged}' has 5 bytes instead of {len(whole)}" in said


def test_a_failing_stage_leaves_what_is_finished(write: Write) -> None:
    text = RECIPE + "  last:\n    uses: tiny.broken\n"
    with pytest.raises(DataError, match="the corpus is empty"):
        _run(write(text))
    assert list(json.loads((RUNS / "poet/run.json").read_text())["stages"]) == ["corpus", "base", "tuned"]
    with pytest.raises(DataError):
        _run(write(text))
    assert RAN == ["broken"]


def test_two_at_once_do_not_meet(write: Write) -> None:
    path = write(RECIPE)
    with lock(RUNS / "poet" / ".lock", "it"), pytest.raises(BusyError, match="at work in 'runs/poet'"):
        _run(path)
    assert RAN == []
    _run(path)


def test_the_closing_table_shows_time_state_and_results(write: Write) -> None:
    path = write(RECIPE)
    _run(path)
    results, _ = _run(path, "tuned.epochs=3")
    console = Console(file=io.StringIO(), record=True, width=120)
    console.print(result_table(results))
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert lines[1].split()[:2] == ["corpus", "kept"]
    assert lines[3].split()[:2] == ["tuned", "made"]
    assert lines[3].endswith("loss 0.5123 · characters 25 · grade 甲")
    assert lines[-1].split()[0] == "total"


def test_figures_are_short() -> None:
    summary = {"tokens": 1234567, "bits_per_character": 4.56789, "tokens_per_s": 12345.6, "form": "五絕"}
    assert summary_line(summary) == "tokens 1,234,567 · bits per character 4.568 · tokens per s 12,346 · form 五絕"


def _changes_runs(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether an audited event is about to change something on disk; the stages write nowhere else."""
    if event == "open":
        return "runs/" in str(arguments[0]) and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir")


def _run_in_a_child(path: Path, *, die_at: int | None) -> bool:
    """Run the recipe in a forked process that dies, as by `kill -9`, just before its n-th change of the run folder.

    Returns whether it died.
    """
    child = os.fork()
    if child == 0:
        changes = 0

        def _die(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal changes
            if _changes_runs(event, arguments):
                changes += 1
                if changes == die_at:
                    os._exit(9)

        sys.addaudithook(_die)
        code = 1
        try:
            _run(path)
            code = 0
        finally:  # Whatever happens, the child must not go on as a second pytest.
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


@pytest.mark.parametrize("damage", [False, True], ids=["fresh", "mending"])
def test_a_death_before_each_change_on_disk_changes_nothing_in_the_end(
    write: Write, monkeypatch: pytest.MonkeyPatch, damage: bool
) -> None:
    monkeypatch.setenv("TINY_LOG", os.devnull)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # It matters to power cuts, not to processes.
    path = write(SLOW.partition("  tuned:")[0].replace("steps: 12", "steps: 2, step_s: 0.0"))

    def start() -> None:
        shutil.rmtree(RUNS, ignore_errors=True)
        if damage:
            _run_in_a_child(path, die_at=None)
            next(RUNS.glob("slow/slow/*/model.txt")).write_text("")

    _run_in_a_child(path, die_at=None)
    undisturbed = _outcome()
    moment = 1
    start()
    while _run_in_a_child(path, die_at=moment):
        _run_in_a_child(path, die_at=None)
        assert _outcome() == undisturbed, f"after a death at change {moment}"
        left = {file.name for file in RUNS.rglob("*") if file.name.endswith((".partial", ".lock", ".json"))}
        assert left == {"run.json", "wenfang.json"}
        moment += 1
        start()
    assert moment > 15


def _outcome() -> dict[str, object]:
    """Everything in a finished run that should not depend on having been interrupted."""
    stages = json.loads((RUNS / "slow/run.json").read_text(encoding="utf-8"))["stages"]
    outcome: dict[str, object] = {}
    for name, stage in stages.items():
        manifest = read_manifest(RUNS / "slow" / stage["path"])
        timeless = {key: record for key, record in manifest.files.items() if key != "metrics.jsonl"}
        outcome[name] = (stage["path"], stage["summary"], manifest.fingerprint, timeless)
    return outcome


class TestKilled:
    """A real process, really killed."""

    def _start(self, path: Path) -> subprocess.Popen[bytes]:
        roots = [str(Path(wenfang.__file__).parents[1]), str(Path(__file__).parent)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(roots), "TINY_LOG": "log", "WENFANG_LANGUAGE": "en"}
        return subprocess.Popen(
            [sys.executable, "-c", RUN_SLOW, str(path)], env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def _steps(self) -> list[int]:
        log = Path("log")
        return [int(line) for line in log.read_text().split()] if log.exists() else []

    def _finish(self, path: Path) -> str:
        process = self._start(path)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
        return said.decode()

    def test_a_kill_inside_a_stage_loses_no_finished_step(self, write: Write) -> None:
        path = write(SLOW)
        process = self._start(path)
        while len(self._steps()) < 5:
            time.sleep(0.005)
            assert process.poll() is None
        process.kill()
        process.wait()
        before = len(self._steps())
        assert not list((RUNS / "slow/slow").glob("*[!l]/wenfang.json"))
        said = self._finish(path)
        assert "unchanged, kept" in said
        assert "Continuing from an interrupted run." in said
        steps = self._steps()
        assert steps[before] in (before - 1, before)  # The step between its log line and its checkpoint may repeat.
        assert sorted(set(steps)) == list(range(12))
        assert not list(RUNS.rglob("*.partial"))
        seconds = json.loads((RUNS / "slow/run.json").read_text())["stages"]["slow"]["seconds"]
        assert seconds >= 12 * 0.03

    def test_a_kill_at_any_moment_changes_nothing_in_the_end(self, write: Write, place: Path) -> None:
        path = write(SLOW)
        self._finish(path)
        undisturbed = _outcome()
        (RUNS / "slow").rename(place / "undisturbed")
        dice = random.Random(7)
        kills = 0
        for _ in range(5):
            process = self._start(path)
            try:
                process.wait(timeout=dice.uniform(0.2, 0.7))
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
        self._finish(path)
        assert kills
        assert _outcome() == undisturbed

    def test_a_second_process_is_turned_away_and_the_first_unharmed(self, write: Write) -> None:
        path = write(SLOW)
        first = self._start(path)
        while len(self._steps()) < 1:
            time.sleep(0.005)
            assert first.poll() is None
        first.send_signal(signal.SIGSTOP)  # On a busy machine it could end before the second one begins.
        second = self._start(path)
        _, said = second.communicate(timeout=60)
        first.send_signal(signal.SIGCONT)
        assert second.returncode != 0
        assert b"Another wenfang is at work in 'runs/slow'" in said
        first.communicate(timeout=60)
        assert first.returncode == 0
        assert self._steps() == list(range(12))

    def test_a_lock_does_not_outlive_its_process(self, write: Write) -> None:
        path = write(SLOW)
        process = self._start(path)
        while len(self._steps()) < 1:
            time.sleep(0.005)
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        self._finish(path)
