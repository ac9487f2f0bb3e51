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


FREED = """
import sys
from wenfang.core.allocator import trim_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

blocks = [bytearray(64 << 10) for _ in range(2000)]  # Below what malloc maps by itself.
last = bytearray(64 << 10)  # Stays above them, so that the heap cannot shrink from its end.
full = resident()
del blocks
kept = resident()
trim_memory()
print(full, kept, resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another libc manages memory here")
def test_freed_memory_goes_back_to_the_system() -> None:
    printed = subprocess.run([sys.executable, "-c", FREED], capture_output=True, check=True, text=True).stdout
    full, kept, left = map(int, printed.split())
    assert full - kept < 0.1 * full
    assert left < 0.5 * full


HANDED = """
import sys
from wenfang.core.allocator import return_freed_blocks

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

if sys.argv[1] == "return":
    assert return_freed_blocks()
blocks = [bytearray(b"x") * (8 << 20)]
del blocks[0]  # From now on glibc puts blocks of up to this size between the others.
blocks = [bytearray(b"x") * (1 << 20) for _ in range(100)]
full = resident()
del blocks[:-1]
print(full, resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another libc manages memory here")
def test_large_blocks_go_back_at_once_where_glibc_would_keep_them() -> None:
    left = {}
    for how in ("return", "keep"):
        printed = subprocess.run([sys.executable, "-c", HANDED, how], capture_output=True, check=True, text=True).stdout
        full, kept = map(int, printed.split())
        left[how] = full - kept
    assert left["return"] > 95 << 20
    assert left["keep"] < 50 << 20
