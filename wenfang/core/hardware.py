"""Facts about this machine, measured rather than guessed."""

import functools
import math
import os
import platform
import re
import shutil
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wenfang.core.cgroup import memory_limit_bytes, processor_limit

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Hardware:
    """What this machine offers to training and inference."""

    processor: str
    instructions: str
    """Extensions of its instruction set, as Linux lists them; empty elsewhere."""
    cores: int
    """Those that this process may use; a container's share of one counts as one."""
    memory_bytes: int
    """The machine's, or as much of it as the container lets this process use."""
    bf16: bool
    """The processor multiplies bfloat16 natively; without it bf16 is slower than fp32."""
    compiler: bool
    """A C++ compiler is at hand, so torch.compile works."""


@functools.cache
def detect() -> Hardware:
    """Look at the machine without measuring or importing anything heavy."""
    instructions = _cpuinfo("flags") or _cpuinfo("Features")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Hardware(
        processor=_cpuinfo("model name") or platform.processor() or platform.machine(),
        instructions=instructions,
        cores=min(cores, math.ceil(processor_limit() or cores)),
        memory_bytes=min(memory, memory_limit_bytes() or memory),
        bf16=not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(instructions.split()),
        compiler=shutil.which(os.environ.get("CXX", "g++")) is not None or shutil.which("clang++") is not None,
    )


@functools.cache
def matmul_flops(dtype: "torch.dtype", device: str = "cpu") -> float:
    """Floating-point operations per second of a large matrix product here: median of five runs, or of fewer where they
    take half a second, as those of arithmetic that the processor must emulate do."""
    import torch

    # A GPU needs a larger one to be full.
    rows, inner = (2048, 768) if device == "cpu" else (8192, 8192)
    a = torch.randn(rows, inner, dtype=dtype, device=device)
    times: list[float] = []
    while len(times) < 2 or (len(times) < 6 and sum(times) < 0.5):
        start = time.perf_counter()
        a @ a.T
        if device != "cpu":
            torch.accelerator.synchronize(device)
        times.append(time.perf_counter() - start)
    return 2.0 * rows * inner * rows / statistics.median(times[1:])


def free_disk_bytes(path: Path) -> int:
    """Free bytes on the disk that holds `path` or its nearest existing parent."""
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    return shutil.disk_usage(existing).free


def cache_folder() -> Path:
    """Where this user keeps what can be made again: `$XDG_CACHE_HOME/wenfang`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wenfang"


def peak_memory_bytes() -> int:
    """The largest resident size this process has had, in bytes."""
    try:  # Linux: getrusage would also count the parent that this process was forked from.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        status = ""
    if found := re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE):
        return int(found[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")
