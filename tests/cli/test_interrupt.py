"""Real processes: stopped by a signal, cut off from their reader, or failing in a way nobody foresaw."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_stages import SLOW

ROOT = Path(__file__).parents[2]
RUN = """
import signal, sys
from functools import partial
import wenfang.cli.app, wenfang.cli.run, wenfang.cli.verbs
from tiny_stages import TINY
from wenfang.cli import main
from wenfang.recipe import load_recipe
wenfang.cli.run.load_recipe = partial(load_recipe, stages=TINY)
wenfang.cli.app.STAGES = wenfang.cli.verbs.STAGES = TINY
signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell's background job starts with it ignored.
sys.exit(main())
"""


def _start(*argv: str) -> subprocess.Popen[str]:
    roots = os.pathsep.join((str(ROOT), str(ROOT / "tests/recipe")))
    environment = {**os.environ, "PYTHONPATH": roots, "TINY_LOG": "log", "WENFANG_LANGUAGE": "en"}
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *argv], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("verse.txt").write_text("床前明月光", encoding="utf-8")
    Path("slow.yaml").write_text(SLOW, encoding="utf-8")


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_quietly_and_the_next_continues(sent: signal.Signals, code: int) -> None:
    process = _start("run", "slow.yaml")
    while not Path("log").exists() or len(Path("log").read_text().split()) < 3:
        time.sleep(0.005)
        assert process.poll() is None
    process.send_signal(sent)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert said.splitlines()[-1] == "Stopped. Run the same command again to continue."
    assert "Traceback" not in said
    process = _start("run", "slow.yaml")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Continuing from an interrupted run." in said
    assert len(Path("log").read_text().split()) <= 13  # Twelve steps, the one cut short perhaps twice.


def test_a_mistake_of_ours_is_one_line_and_a_traceback_on_request() -> None:
    _, said = (process := _start("tiny", "broken", "--how", "bug", "--out", "x")).communicate(timeout=60)
    assert process.returncode == 1
    forecast, told = said.splitlines()
    assert forecast.startswith("Forecast: ")
    assert told.startswith("unexpected KeyError: 'a mistake\\nof ours' (wenfang/recipe/execution.py:")
    assert "--debug" in said
    _, said = (process := _start("--debug", "tiny", "broken", "--how", "bug", "--out", "x")).communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" in said
    assert "tiny_stages.py" in said


def test_a_reader_who_leaves_ends_the_command_without_a_word() -> None:
    process = _start("--help")
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=60) != 0
    assert process.stderr is not None
    assert process.stderr.read() == ""
