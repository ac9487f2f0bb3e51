"""Facts about machines: measured once, read from a file, or preset."""

from pathlib import Path

import pytest

from wenfang.core import device
from wenfang.core.device import PRESETS, Device, find_device
from wenfang.core.errors import InputError

SOME = Device(name="some", memory_gb=1, bf16_tflops=2, fp32_tflops=1, gb_per_s=3)


def test_this_machine_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls: list[int] = []
    monkeypatch.setattr(device, "measure", lambda: calls.append(1) or SOME)
    assert find_device("here") == find_device("here") == SOME
    assert len(calls) == 1
    (kept,) = tmp_path.glob("wenfang/device-*.json")
    kept.write_text("{")  # Cut off: measured again.
    assert find_device("here") == SOME
    assert len(calls) == 2


def test_measured_figures_are_those_of_a_processor() -> None:
    measured = device.measure()
    assert 0.005 < measured.fp32_tflops < 50
    assert 1 < measured.gb_per_s < 2000
    assert 0.1 < measured.dispatch_us < 1000


def test_a_file_describes_a_machine_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("{name: mine, memory_gb: 96, bf16_tflops: 55, fp32_tflops: 27, gb_per_s: 800}\n")
    assert find_device(str(path)).memory_bytes == 96_000_000_000
    path.write_text("{name: mine, memory_gb: -1, bf16_tflops: 55, fp32_tflops: 27, gb_per_s: 800}\n")
    with pytest.raises(InputError, match="memory_gb"):
        find_device(str(path))
    with pytest.raises(InputError, match="Did you mean 'h100'"):
        find_device("h10")
    assert find_device("h200") is PRESETS["h200"]
