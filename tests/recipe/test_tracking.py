"""Numbers handed to TensorBoard and MLflow, read back by those."""

import json
from pathlib import Path

import pytest

from wenfang.cli import main

LINES = (
    {"step": 10, "loss": 3.5, "tokens_per_s": 900.0, "seconds": 4.0},
    {"step": 10, "validation_loss": 3.25},
    {"step": 20, "loss": 2.5, "tokens_per_s": 1000.0, "seconds": 9.0},
)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "runs/poet/pretrain/0123456789abcdef"
    folder.mkdir(parents=True)
    text = "".join(json.dumps(line) + "\n" for line in LINES) + '{"step": 30, "lo'
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    manifest = {"kind": "model", "stage": "train.pretrain", "fingerprint": folder.name, "config": {"dim": 32}}
    (folder / "wenfang.json").write_text(
        json.dumps({**manifest, "inputs": {}, "summary": {}, "seconds": 9, "files": {}})
    )
    return tmp_path / "runs/poet"


def test_tensorboard_reads_every_number(run_folder: Path, tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "logs"
    assert main(["metrics", "export", str(run_folder), "--to", "tensorboard", "--out", str(out)]) == 0
    read = events.EventAccumulator(str(out / "pretrain/0123456789abcdef"))
    read.Reload()
    assert {name: [(e.step, e.value) for e in read.Scalars(name)] for name in read.Tags()["scalars"]} == {
        "loss": [(10, 3.5), (20, 2.5)],
        "tokens_per_s": [(10, 900.0), (20, 1000.0)],
        "seconds": [(10, 4.0), (20, 9.0)],
        "validation_loss": [(10, 3.25)],
    }
    first, second = read.Scalars("loss")
    assert second.wall_time - first.wall_time == pytest.approx(5)


def test_mlflow_reads_every_number(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow")
    out = tmp_path / "mlruns"
    assert (
        main(["metrics", "export", str(run_folder), "--to", "mlflow", "--out", str(out), "--experiment", "poet"]) == 0
    )
    client = mlflow.MlflowClient(out.as_uri())
    (made,) = client.search_runs([client.get_experiment_by_name("poet").experiment_id])
    assert (made.info.run_name, made.info.status) == ("pretrain/0123456789abcdef", "FINISHED")
    assert made.data.params == {"dim": "32"}
    history = client.get_metric_history(made.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(10, 3.5), (20, 2.5)]
    assert history[1].timestamp - history[0].timestamp == 5000
    assert made.data.metrics["validation_loss"] == 3.25


def test_what_cannot_be_exported_is_told(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["metrics", "export", str(tmp_path / "none"), "--to", "tensorboard", "--out", "x"]) == 2
    assert "has no metrics.jsonl" in capsys.readouterr().err
    pytest.importorskip("tensorboard")
    assert main(["metrics", "export", str(run_folder), "--to", "tensorboard", "--out", str(tmp_path)]) == 2
    assert "already holds something" in capsys.readouterr().err
