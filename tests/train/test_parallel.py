"""Several real processes: the run they share is the run of one, to rounding."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from train.shape import SHAPE

from wenfang.cli import main

SETTINGS = {
    "steps": 60,
    "batch": 6,
    "accumulate": 2,
    **SHAPE,
    "validate-every": 20,
    "optimizer.name": "adamw",
}
OPTIONS = [f"--{name}={value}" for name, value in SETTINGS.items()]


def words(corpus: Path, tokenizer: Path, out: Path, *more: str) -> list[str]:
    return ["train", "pretrain", f"--corpus={corpus}", f"--tokenizer={tokenizer}", f"--out={out}", *OPTIONS, *more]


def curve(out: Path, name: str) -> dict[int, float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def start(*command: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_are_one(corpus_folder: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert main(words(corpus_folder, tokenizer_folder, alone, "--no-compile")) == 0
    command = words(corpus_folder, tokenizer_folder, shared, "--no-compile", "--nproc=2")
    process = start(sys.executable, "-m", "wenfang", *command)
    _, said = process.communicate(timeout=90)
    assert process.returncode == 0, said
    for name in ("loss", "validation_loss"):
        # Sums of other parts in another order: fp32 rounding, grown over 60 steps.
        assert curve(shared, name) == pytest.approx(curve(alone, name), rel=1e-4)
