"""The kernel's own count of page faults says whether freed memory comes back."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from wenfang.core.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def touch():
    block = bytearray(64 << 20)  # Zeroed, so that every page is written.
    block[::4096] = b"x" * len(block[::4096])
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another libc manages memory here")
def test_memory_once_freed_is_used_again_without_a_page_fault() -> None:
    faults = {
        how: int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, check=True).stdout)
        for how in ("keep", "return")
    }
    pages = 5 * (64 << 20) // 4096
    assert faults["return"] > pages / 2
    assert faults["keep"] < pages / 100
