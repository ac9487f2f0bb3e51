"""A golden run: a refactor must reproduce it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from wenfang.core.report import Reporter
from wenfang.model import Decoder
from wenfang.train.config import TrainConfig
from wenfang.train.loop import train
from wenfang.train.objective import Task

# Recorded 2026-11-23 with the first version of the loop, fp32, uncompiled, Muon + AdamW.
LOSSES = {10: 2.834893727, 20: 2.073184776, 30: 1.486517477, 40: 1.090194356, 50: 0.832984704, 60: 0.737710917}
VALIDATION = {20: 1.703420237, 40: 0.922900970, 60: 0.696874224}


def test_the_golden_run(
    task: Task, tiny_model: Callable[[], Decoder], tiny_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    metrics = tmp_path / "metrics.jsonl"
    summary = train(tiny_model(), task, tiny_config(), tmp_path, Reporter(metrics_path=metrics), label="")
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    # Other processors order the sums differently and Muon iterates in bf16; 60 steps let that grow to about 1e-4.
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert losses == pytest.approx(LOSSES, rel=1e-3)
    validation = {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
    assert validation == pytest.approx(VALIDATION, rel=1e-3)
    assert summary["validation_loss"] == pytest.approx(VALIDATION[60], abs=1e-3)
