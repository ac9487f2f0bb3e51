"""What a training stage was said to take against what the command then took, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from wenfang.cli import main
from wenfang.train import forecast, placement
from wenfang.train.config import PretrainConfig
from wenfang.train.forecast import forecast_pretrain

OPTIONS = {"dim": 384, "layers": 4, "heads": 6, "kv_heads": 6, "hidden": 1024, "context": 256, "batch": 8, "steps": 3}


def test_memory_is_forecast_within_15_percent_of_what_the_command_takes(
    corpus_folder: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    inputs = {"corpus": corpus_folder, "tokenizer": tokenizer_folder}
    config = PretrainConfig(**inputs, **OPTIONS, compile=False, checkpoint_every_s=1e-6)
    given = inputs | OPTIONS | {"checkpoint_every_s": 1e-6}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    command = [sys.executable, "-m", "wenfang", "train", "pretrain", *words, "--no-compile", "--out", tmp_path / "out"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    lines = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    peak_bytes = max(line.get("peak_memory_gib", 0) for line in lines) * 2**30
    assert forecast_pretrain(config).memory_bytes == pytest.approx(peak_bytes, rel=0.15)


def test_time_is_forecast_by_the_speed_of_the_arithmetic_in_use(
    corpus_folder: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = {torch.float32: 3e9, torch.bfloat16: 1e9}
    monkeypatch.setattr(forecast, "matmul_flops", lambda dtype, _: speeds[dtype])
    single, half = (
        PretrainConfig(corpus=corpus_folder, tokenizer=tokenizer_folder, **OPTIONS, dtype=dtype, compile=False)
        for dtype in ("float32", "bfloat16")
    )
    assert forecast_pretrain(half).seconds == pytest.approx(3 * forecast_pretrain(single).seconds)


def test_processes_on_one_machine_share_its_memory_and_their_work(
    corpus_folder: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "matmul_flops", lambda *_: 1e9)
    inputs = {"corpus": corpus_folder, "tokenizer": tokenizer_folder, "dtype": "float32", "compile": False}
    alone, shared, parts = (
        PretrainConfig(**inputs, **OPTIONS | {"batch": batch}, shard=shard)
        for batch, shard in ((4, False), (8, False), (8, True))
    )
    one = forecast_pretrain(alone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    two = forecast_pretrain(shared)
    # Two processes with four rows each, and one copy of the first one's state while a checkpoint is written.
    copy = one.disk_bytes // 5 * 3 // 4
    assert two.memory_bytes == pytest.approx(2 * one.memory_bytes - copy, rel=0.1)
    assert two.seconds == pytest.approx(one.seconds)
    assert forecast_pretrain(parts).memory_bytes < two.memory_bytes
    monkeypatch.setattr(placement, "choose", lambda _: torch.device("cuda", 0))
    monkeypatch.setattr(placement, "memory_bytes", lambda _: 80 << 30)
    saved = forecast_pretrain(shared).memory_bytes - forecast_pretrain(parts).memory_bytes
    # Half of the weights and Muon's momentum, of which the disk holds four, and the weights once more.
    assert saved == pytest.approx(one.disk_bytes / 4.5 / 2, rel=0.1)


def test_a_batch_that_cannot_fit_is_refused_with_what_to_lower(
    corpus_folder: Path, tokenizer_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--corpus", str(corpus_folder), "--tokenizer", str(tokenizer_folder), "--steps", "1"]
    out = tmp_path / "out"
    assert main(["train", "pretrain", *words, "--batch", "10000000", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "train.pretrain needs about" in said
    assert "Lower batch=10000000, context=128, layers=4, dim=256, or use a larger machine." in said
    assert not out.exists()
    assert not list(tmp_path.glob("*.partial"))
