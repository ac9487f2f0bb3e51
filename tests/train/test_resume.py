"""Real processes, stopped and killed: the run that continues is the run that was never disturbed."""

import errno
import json
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from train.shape import SHAPE

from wenfang.cli import main
from wenfang.model import load_model
from wenfang.train import pretrain

SLOW = """
import sys, time
from wenfang.cli import main
from wenfang.train import loop
inner = loop._Run._step
def slow(self):
    time.sleep(0.02)
    return inner(self)
loop._Run._step = slow
sys.exit(main())
"""
SETTINGS = {
    "steps": 60,
    "batch": 4,
    **SHAPE,
    "validate-every": 25,
    "dropout": 0.1,
}
OPTIONS = ["--no-compile", *(f"--{name}={value}" for name, value in SETTINGS.items())]


def newest(folder: Path) -> int:
    names = [path.stem for path in folder.glob("out.*.partial/checkpoints/step-*.safetensors")]
    return max((int(name.removeprefix("step-")) for name in names), default=0)


def slow_run(words: list[str], out: Path, steps: int) -> "subprocess.Popen[str]":
    """A slow run under way that has written checkpoints of so many more steps."""
    before = newest(out.parent)
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *words, "--out", str(out)], stderr=subprocess.PIPE, text=True
    )
    while newest(out.parent) < before + steps:
        time.sleep(0.005)
        assert process.poll() is None
    return process


def curve(folder: Path) -> list[tuple[float, ...]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line.get("loss"), line.get("validation_loss")) for line in lines]


def test_a_stopped_and_killed_run_resumes_to_the_same_bits(
    corpus_folder: Path, tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", "pretrain", "--corpus", str(corpus_folder), "--tokenizer", str(tokenizer_folder), *OPTIONS]
    undisturbed, killed = tmp_path / "undisturbed/out", tmp_path / "killed/out"
    assert main([*words, "--out", str(undisturbed)]) == 0
    for number, code in ((signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)):
        process = slow_run(words, killed, 7)
        process.send_signal(number)
        reached = newest(killed.parent)
        _, said = process.communicate(timeout=60)
        assert process.returncode == code
        if number == signal.SIGTERM:
            assert said.splitlines()[-1] == "Stopped. Run the same command again to continue."
            assert newest(killed.parent) > reached  # The running step was finished and saved first.
        assert not killed.exists()
    assert 14 <= newest(killed.parent) < 60

    reached = newest(killed.parent)
    process = slow_run(words, killed, 3)
    # From now on no file takes more: the kernel refuses a write in its midst, as on a disk that has filled up.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert re.search(r"step-\d+\.safetensors\.partial: The file would exceed the limit", said.splitlines()[-1])
    assert reached + 3 <= newest(killed.parent) < 60

    def find_no_room(*given: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "model.safetensors")

    with monkeypatch.context() as patch:  # The disk is full when the model is to be written.
        patch.setattr(pretrain, "save_model", find_no_room)
        assert main([*words, "--out", str(killed)]) == 2
    assert newest(killed.parent) == 60
    assert main([*words, "--out", str(killed)]) == 0
    expected, resumed = load_model(undisturbed).state_dict(), load_model(killed).state_dict()
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    assert curve(undisturbed) == curve(killed)
    assert not (killed / "checkpoints").exists()
