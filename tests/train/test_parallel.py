"""Several real processes: the run they share is the run of one, to rounding, over any change of their number."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from train.shape import SHAPE
from train.sharded_steps import DECODERS, OPTIMIZERS

SETTINGS = {
    "steps": 60,
    "batch": 6,
    "accumulate": 2,
    **SHAPE,
    "validate-every": 20,
    "optimizer.name": "adamw",
}


def words(corpus: Path, tokenizer: Path, out: Path, *more: str, **changes: object) -> list[str]:
    options = [f"--{name}={value}" for name, value in (SETTINGS | changes).items()]
    folders = [f"--corpus={corpus}", f"--tokenizer={tokenizer}", f"--out={out}"]
    return ["train", "pretrain", "--no-compile", *folders, *options, *more]


def curve(out: Path, name: str) -> dict[int, float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def start(*command: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


SLOW = """
import sys, time
from wenfang.train import loop
inner = loop._Run._step
def slow(self):
    time.sleep(0.05)
    return inner(self)
loop._Run._step = slow
from wenfang.cli import main
sys.exit(main())
"""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def newest(out: Path) -> int:
    """Step of the newest checkpoint of a run that is not finished."""
    names = [path.stem for path in out.parent.glob(f"{out.name}.*.partial/checkpoints/step-*.safetensors")]
    return max((int(name.removeprefix("step-")) for name in names), default=0)


def wait_for(process: subprocess.Popen[str], out: Path, step: int) -> None:
    while newest(out) < step:
        time.sleep(0.02)
        assert process.poll() is None, process.communicate()


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.fixture(scope="module")
def alone(corpus_folder: Path, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run of one process."""
    out = tmp_path_factory.mktemp("parallel") / "alone"
    process = start(sys.executable, "-m", "wenfang", *words(corpus_folder, tokenizer_folder, out))
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    return out


@pytest.fixture(scope="module")
def shared(corpus_folder: Path, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run of two processes."""
    out = tmp_path_factory.mktemp("parallel") / "shared"
    process = start(sys.executable, "-m", "wenfang", *words(corpus_folder, tokenizer_folder, out, "--nproc=2"))
    _, said = process.communicate(timeout=90)
    assert process.returncode == 0, said
    return out


def test_two_processes_are_one(alone: Path, shared: Path) -> None:
    for name in ("loss", "validation_loss"):
        # Sums of other parts in another order: fp32 rounding, grown over 60 steps.
        assert curve(shared, name) == pytest.approx(curve(alone, name), rel=1e-4)


def test_two_then_one_then_three_processes_are_one(
    alone: Path, corpus_folder: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    shared, slow = tmp_path / "shared", tmp_path / "slow.py"
    slow.write_text(SLOW)
    command = words(corpus_folder, tokenizer_folder, shared, "--shard")

    # Two processes with a part of the weights each, one of which is killed: torchrun ends the job, checkpoints stay.
    process = start(*TORCHRUN, "2", str(slow), *command)
    wait_for(process, shared, 8)
    os.kill(workers_of(process)[-1], signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not shared.exists()

    # One process goes on, and saves when asked to stop.
    first = newest(shared)
    process = start(sys.executable, str(slow), *command)
    wait_for(process, shared, first + 8)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert f"resuming from step {first}" in said

    # Three finish it, two rows each, with a part of the weights each.
    process = start(sys.executable, "-m", "wenfang", *command, "--nproc=3")
    _, said = process.communicate(timeout=90)
    assert process.returncode == 0, said
    assert said.count("resuming from step") == 1  # Only the first process speaks.
    for name in ("loss", "validation_loss"):
        assert curve(shared, name) == pytest.approx(curve(alone, name), rel=1e-4)
    assert sorted(curve(shared, "loss")) == [10, 20, 30, 40, 50, 60]
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (shared, alone))
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-2, atol=1e-4)


def test_a_job_that_is_hit_says_how_it_goes_on_and_ends_in_the_same_bits(
    shared: Path, corpus_folder: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "wenfang", *words(corpus_folder, tokenizer_folder, out, "--nproc=2")]
    for number, code in ((signal.SIGTERM, 143), (signal.SIGKILL, 137)):
        before = newest(out)
        process = start(*command)
        wait_for(process, out, before + 5)
        os.kill(workers_of(process)[-1] if number == signal.SIGKILL else process.pid, number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == code, said
        assert "Run the same command again to continue" in said.splitlines()[-1]
        assert newest(out) >= before + 5
    process = start(*command)
    _, said = process.communicate(timeout=90)
    assert process.returncode == 0, said
    for name in ("loss", "validation_loss"):
        assert curve(out, name) == curve(shared, name)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (out, shared))
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())


def test_a_batch_too_small_to_share_is_refused(corpus_folder: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    command = words(corpus_folder, tokenizer_folder, tmp_path / "out", "--nproc=2", batch=1)
    process = start(sys.executable, "-m", "wenfang", *command)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "batch=1 cannot be shared by 2 processes" in said


def test_gradients_and_steps_in_parts_are_those_of_the_whole() -> None:
    """Every kind of decoder and optimiser, in two processes that compare with one."""
    script = Path(__file__).with_name("sharded_steps.py")
    process = start(*TORCHRUN, "2", str(script))
    said, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert said.split() == [*DECODERS, *OPTIMIZERS]
