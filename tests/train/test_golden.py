"""Golden runs: a refactor must reproduce them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from wenfang.core.report import Reporter
from wenfang.model import Decoder
from wenfang.train.config import OptimizerConfig, TrainConfig
from wenfang.train.loop import train
from wenfang.train.objective import Task

ADAMW = OptimizerConfig(name="adamw", lr=0.01, weight_decay=0.1, schedule="cosine")
# Recorded 2026-11-23, fp32, uncompiled; Muon's with the first version of the loop. By step.
RUNS = {
    "muon": (
        OptimizerConfig(),
        {10: 2.834893727, 20: 2.073184776, 30: 1.486517477, 40: 1.090194356, 50: 0.832984704, 60: 0.737710917},
        {20: 1.703420237, 40: 0.922900970, 60: 0.696874224},
        # Muon iterates in bf16: embeddings scaled by 1 ± 1e-7 at the start end 6e-3 apart after 60 steps.
        1e-2,
    ),
    "adamw": (
        ADAMW,
        {10: 2.834282565, 20: 2.053544879, 30: 1.545419741, 40: 1.240400445, 50: 1.057611132, 60: 1.024470639},
        {20: 1.739519186, 40: 1.136504993, 60: 1.019635167},
        1e-5,  # fp32 throughout: the same scaling moves it by 1e-6.
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_the_golden_run(
    name: str, task: Task, tiny_model: Callable[[], Decoder], tiny_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    optimizer, losses, validation, tolerance = RUNS[name]
    metrics = tmp_path / "metrics.jsonl"
    config = tiny_config(optimizer=optimizer)
    summary = train(tiny_model(), task, config, tmp_path, Reporter(metrics_path=metrics), label="")
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    found = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert found == pytest.approx(losses, rel=tolerance)
    found = {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
    assert found == pytest.approx(validation, rel=tolerance)
    assert summary["validation_loss"] == pytest.approx(found[60], abs=1e-4)
