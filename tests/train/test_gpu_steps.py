"""Training steps on a GPU as far as a machine without one can tell: what that shows is in `gpu_steps.py`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from train.zoo import ADAPTERS, DECODERS, OPTIMIZERS

HERE, TORCH = Path(__file__).parent, Path(torch.__file__).parent


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that makes torch believe in GPUs; loaded into no process but those below."""
    library = tmp_path_factory.mktemp("devices") / "devices.so"
    link = [f"-L{TORCH / 'lib'}", "-lc10", f"-Wl,-rpath,{TORCH / 'lib'}"]
    source = str(HERE / "devices.cpp")
    subprocess.run(
        ["g++", "-std=c++20", "-shared", "-fPIC", f"-I{TORCH / 'include'}", source, "-o", str(library), *link],
        check=True,
    )
    return library


@pytest.mark.skipif(torch.cuda.is_available(), reason="a real GPU says more")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")
@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_step_keeps_to_the_gpu_and_never_waits_for_it(devices: Path, device: str) -> None:
    paths = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent)])
    done = subprocess.run(
        [sys.executable, str(HERE / "gpu_steps.py"), str(devices), device],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    adapters = [f"{adapter.method} {adapter.base}" for adapter in ADAPTERS]
    assert done.stdout.splitlines() == [*DECODERS, *OPTIMIZERS, *adapters]
