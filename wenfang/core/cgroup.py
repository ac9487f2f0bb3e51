"""What a container or a batch system lets this process use: limits of Linux control groups, version 2 and 1.

Formats: the kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst, scheduler/sched-bwc.rst.
"""

from collections.abc import Iterator
from pathlib import Path

MOUNTED = Path("/sys/fs/cgroup")
MINE = Path("/proc/self/cgroup")


def memory_limit_bytes() -> int | None:
    """The least of the limits of this process's groups; None where there is none, or no such groups.

    Version 1 writes "no limit" as a number larger than any machine's memory.
    """
    found = [*_read("", "memory.max"), *_read("memory", "memory.limit_in_bytes")]
    return min((int(limit) for limit in found if limit != "max"), default=None)


def processor_limit() -> float | None:
    """How many processors' time this process may use: the least quota of its groups; None where there is none."""
    first = zip(_read("cpu", "cpu.cfs_quota_us"), _read("cpu", "cpu.cfs_period_us"), strict=True)
    shares = [limit.split() for limit in _read("", "cpu.max")] + [list(pair) for pair in first]
    return min((int(quota) / int(period) for quota, period in shares if quota not in ("max", "-1")), default=None)


def _read(controller: str, name: str) -> Iterator[str]:
    """A file of each of this process's groups that has it, innermost first. Version 2 has one tree for all controllers,
    named "".

    Within a container the path may be the one outside of it; the container's own group is then the root that it sees.
    """
    try:
        lines = MINE.read_text(encoding="utf-8").splitlines()
    except OSError:  # Another system than Linux.
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            root = MOUNTED / controller
            group = root / path.lstrip("/")
            for folder in (group, *group.parents):
                if (folder / name).is_file():
                    yield (folder / name).read_text(encoding="utf-8").strip()
                if folder == root:
                    break
