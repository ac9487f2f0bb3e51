"""The figures of the progress line, from a clock that we set."""

import math
from types import SimpleNamespace

import pytest

from wenfang.core.hardware import peak_memory_bytes
from wenfang.train import meter
from wenfang.train.meter import Meter, bits_of

TEXT = SimpleNamespace(characters_per_token=2.0, bytes_per_token=6.0)


def test_speed_and_use_of_the_machine_follow_from_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WENFANG_LANGUAGE", "en")
    clock = iter([0.0, 2.0, 4.0, 4.0])
    monkeypatch.setattr(meter.time, "monotonic", lambda: next(clock))
    counted = Meter(flops_per_step=6e9, peak_flops=12e9, data=TEXT, losses=[])
    counted.add(2 * math.log(2), {}, tokens=100)
    counted.add(4 * math.log(2), {}, tokens=300, waited_s=0.5)
    assert counted.note().startswith(
        "loss 2.773 · 0.667 bits/byte · 2.000 bits/char · 150 tokens/s · 3 GFLOP/s, MFU 25% · "
    )
    values = counted.window()
    assert values["tokens_per_s"] == 100
    assert values["mfu"] == 0.25
    assert values["bits_per_character"] == pytest.approx(1.5)
    assert values["bits_per_byte"] == pytest.approx(0.5)
    assert values["data_wait"] == 0.125
    assert 0.05 < values["peak_memory_gib"] <= peak_memory_bytes() / 2**30
    nothing_written = SimpleNamespace(characters_per_token=0.0, bytes_per_token=0.0)  # Replies of an end token alone.
    assert bits_of(1.0, nothing_written) == {}
    assert counted.summary() == {"tokens_per_s": 150, "gflop_per_s": 3, "mfu": 0.25, "data_wait": 0.25}
