"""Checkpoints: what is kept, what damage does, and whose they are."""

import errno
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from wenfang.core.errors import ModelError
from wenfang.core.report import Reporter
from wenfang.model import Decoder, DecoderConfig
from wenfang.train.checkpoint import Checkpoints, Progress
from wenfang.train.config import OptimizerConfig
from wenfang.train.optimizer import make_optimizers

Make = Callable[[], Decoder]


class Warnings(Reporter):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def warn(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture
def saved(tiny_model: Make, tmp_path: Path) -> Path:
    """Checkpoints of steps 1 to 4, whose every weight is the step's number; 2 was the best. Two are kept."""
    model = tiny_model()
    checkpoints = Checkpoints(tmp_path, model, [], keep=2, report=Reporter())
    for step in range(1, 5):
        with torch.no_grad():
            for weight in model.parameters():
                weight.fill_(step)
        checkpoints.save(Progress(step=step, best_step=min(step, 2), best_loss=1.0))
    checkpoints.close()
    return tmp_path


def load(model: Decoder, folder: Path, report: Reporter | None = None) -> Progress:
    return Checkpoints(folder, model, [], keep=2, report=report or Reporter()).load()


def test_the_newest_and_the_best_are_kept(saved: Path, tiny_model: Make) -> None:
    names = [path.name for path in sorted((saved / "checkpoints").iterdir())]
    assert names == [f"step-0000000{step}.safetensors" for step in (2, 3, 4)]
    model = tiny_model()
    checkpoints = Checkpoints(saved, model, [], keep=2, report=Reporter())
    progress = checkpoints.load()
    assert progress.step == 4
    assert all(weight.eq(4).all() for weight in model.parameters())
    assert checkpoints.load_best(progress)
    assert all(weight.eq(2).all() for weight in model.parameters())


@pytest.mark.parametrize("damage", ["flip", "cut", "metadata", "empty"])
def test_a_damaged_one_is_passed_over_with_a_warning(saved: Path, tiny_model: Make, damage: str) -> None:
    path = saved / "checkpoints/step-00000004.safetensors"
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-3] ^= 1  # One bit of one weight; the file is well-formed.
    elif damage == "metadata":
        data = data.replace(b'\\"step\\": 4', b'\\"step\\": 9')
    path.write_bytes(data[: {"cut": len(data) // 2, "empty": 0}.get(damage, len(data))])
    model, report = tiny_model(), Warnings()
    assert load(model, saved, report).step == 3
    assert all(weight.eq(3).all() for weight in model.parameters())
    assert len(report.texts) == 1
    assert "step-00000004.safetensors' is damaged" in report.texts[0]


def test_another_architecture_is_refused(saved: Path) -> None:
    other = Decoder(DecoderConfig(vocab_size=23, dim=32, layers=2, heads=2, kv_heads=1, head_dim=8, hidden=24))
    with pytest.raises(ModelError, match="another architecture"):
        load(other, saved)


def test_the_state_is_that_of_the_call_not_of_the_write(tiny_model: Make, tmp_path: Path) -> None:
    model = tiny_model()
    expected = {name: weight.clone() for name, weight in model.state_dict().items()}
    checkpoints = Checkpoints(tmp_path, model, [], keep=1, report=Reporter())
    checkpoints.save(Progress(step=1))
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    checkpoints.close()
    load(model, tmp_path)
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in expected.items())


def test_a_full_disk_is_an_error_that_costs_nothing(saved: Path, tiny_model: Make) -> None:
    """A limit on file size, which the kernel enforces as it does a full disk: the write itself fails."""
    model = tiny_model()
    checkpoints = Checkpoints(saved, model, [], keep=2, report=Reporter())
    before = {path.name: path.read_bytes() for path in (saved / "checkpoints").iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, limits[1]))
    try:
        with pytest.raises(OSError, match="step-00000005") as caught:
            checkpoints.save(Progress(step=5), wait=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
        checkpoints.close()
    assert caught.value.errno == errno.EFBIG
    assert {path.name: path.read_bytes() for path in (saved / "checkpoints").iterdir()} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_an_error(saved: Path, tiny_model: Make) -> None:
    checkpoints = Checkpoints(saved, tiny_model(), [], keep=2, report=Reporter())
    (saved / "checkpoints").chmod(0o500)
    try:
        with pytest.raises(OSError, match="step-00000005"):
            checkpoints.save(Progress(step=5), wait=True)
    finally:
        (saved / "checkpoints").chmod(0o700)
        checkpoints.close()


def test_an_error_behind_the_training_is_told_at_the_next_check(tiny_model: Make, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    checkpoints = Checkpoints(tmp_path, tiny_model(), [], keep=2, report=Reporter())

    def save_and_look() -> None:  # The write fails before or after `save` returns.
        checkpoints.save(Progress(step=1))
        checkpoints.check(wait=True)

    with pytest.raises(OSError, match="checkpoints"):
        save_and_look()
    checkpoints.close()


def test_optimizer_states_come_back_in_their_own_dtypes(tiny_model: Make, tmp_path: Path) -> None:
    def states(optimizers: list[torch.optim.Optimizer]) -> list[torch.Tensor]:
        groups = [(o, group) for o in optimizers for group in o.param_groups]
        return [value for o, group in groups for w in group["params"] for _, value in sorted(o.state[w].items())]

    model = tiny_model()
    optimizers = make_optimizers(model, OptimizerConfig())
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    for optimizer in optimizers:
        optimizer.step()
    checkpoints = Checkpoints(tmp_path, model, optimizers, keep=1, report=Reporter())
    checkpoints.save(Progress(step=1), wait=True)
    other = tiny_model()
    fresh = make_optimizers(other, OptimizerConfig())
    assert Checkpoints(tmp_path, other, fresh, keep=1, report=Reporter()).load().step == 1
    for before, after in zip(states(optimizers), states(fresh), strict=True):
        assert before.dtype == after.dtype
        assert torch.equal(before, after)
