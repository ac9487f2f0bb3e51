"""The threads that OpenMP keeps, by the system's own count."""

import subprocess
import sys

SCRIPT = """
from pathlib import Path

import torch

from wenfang.native.threads import release_threads


def work():
    torch.randn(512, 512) @ torch.randn(512, 512)
    torch.randn(1 << 20).exp()
    return len(list(Path("/proc/self/task").iterdir()))


torch.set_num_threads(4)
before = work()
release_threads()
print(before, len(list(Path("/proc/self/task").iterdir())), work())
"""


def test_threads_are_let_go_and_come_back() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=120)
    before, released, again = map(int, done.stdout.split())
    assert released == before - 3
    assert again == before
