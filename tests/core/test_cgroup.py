"""Limits of control groups, in files as the kernel and container runtimes lay them out."""

from pathlib import Path

import pytest

from wenfang.core import cgroup
from wenfang.core.errors import CapacityError
from wenfang.core.forecast import Forecast
from wenfang.core.hardware import detect
from wenfang.recipe.capacity import check_capacity

NO_LIMIT = "9223372036854771712\n"  # What version 1 says: the largest number of whole pages.


@pytest.mark.parametrize(
    ("mine", "files", "memory", "processors"),
    [
        # Version 2, seen from within a container: its own group is the root.
        ("0::/\n", {"memory.max": "1073741824\n", "cpu.max": "150000 100000\n"}, 1 << 30, 1.5),
        # A batch system's step within a job: the tighter of both counts, wherever it is.
        (
            "0::/slurm/job_7/step_0\n",
            {
                "slurm/job_7/memory.max": "2147483648\n",
                "slurm/job_7/cpu.max": "400000 100000\n",
                "slurm/job_7/step_0/memory.max": "max\n",
                "slurm/job_7/step_0/cpu.max": "max 100000\n",
            },
            2 << 30,
            4.0,
        ),
        # Version 1 with one mount per controller, some of them shared; "two" is another controller's group.
        (
            "4:memory:/one\n2:cpu,cpuacct:/one/inner\n1:cpuset:/two\n0::/\n",
            {
                "memory/memory.limit_in_bytes": NO_LIMIT,
                "memory/one/memory.limit_in_bytes": "536870912\n",
                "memory/two/memory.limit_in_bytes": "4096\n",
                "cpu/cpu.cfs_quota_us": "-1\n",
                "cpu/cpu.cfs_period_us": "100000\n",
                "cpu/one/cpu.cfs_quota_us": "50000\n",
                "cpu/one/cpu.cfs_period_us": "100000\n",
                "cpu/one/inner/cpu.cfs_quota_us": "-1\n",
                "cpu/one/inner/cpu.cfs_period_us": "100000\n",
            },
            512 << 20,
            0.5,
        ),
        # Docker with version 1: the path is the one outside, the mounted root is the container's group.
        ("4:memory:/docker/c0ffee\n", {"memory/memory.limit_in_bytes": "268435456\n"}, 256 << 20, None),
        ("0::/user.slice\n", {"user.slice/memory.max": "max\n", "user.slice/cpu.max": "max 100000\n"}, None, None),
        (None, {}, None, None),
    ],
    ids=["v2 container", "v2 nested", "v1", "v1 docker", "no limit", "no such files"],
)
def test_the_tightest_limit_of_all_groups_counts(
    mine: str | None,
    files: dict[str, str],
    memory: int | None,
    processors: float | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = detect()
    monkeypatch.setattr(cgroup, "MOUNTED", tmp_path / "mounted")
    monkeypatch.setattr(cgroup, "MINE", tmp_path / "mine")
    if mine is not None:
        (tmp_path / "mine").write_text(mine)
    for name, content in files.items():
        path = tmp_path / "mounted" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert cgroup.memory_limit_bytes() == memory
    assert cgroup.processor_limit() == processors
    detect.cache_clear()
    try:
        assert detect().memory_bytes == min(memory or machine.memory_bytes, machine.memory_bytes)
        assert detect().cores == min(machine.cores, {0.5: 1, 1.5: 2}.get(processors or 0, machine.cores))
        if memory is not None:
            too_much = Forecast(seconds=1, memory_bytes=detect().memory_bytes + 1, disk_bytes=1)
            with pytest.raises(CapacityError, match="this machine has"):
                check_capacity({"work": too_much}, tmp_path, {"work": tmp_path})
    finally:
        monkeypatch.undo()
        detect.cache_clear()


def test_a_limit_larger_than_the_machine_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = detect()
    monkeypatch.setattr("wenfang.core.hardware.memory_limit_bytes", lambda: int(NO_LIMIT))
    monkeypatch.setattr("wenfang.core.hardware.processor_limit", lambda: 1e6)
    detect.cache_clear()
    assert detect() == before
