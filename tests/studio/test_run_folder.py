"""What the studio reads from run and model folders."""

import os
import time
from pathlib import Path

import pytest
from studio.fakes import write_metrics

from wenfang.core.errors import InputError
from wenfang.studio.run import Metrics, find_model


def test_a_run_offers_its_last_model_under_the_recipes_name(run_folder: Path) -> None:
    found = find_model(run_folder)
    assert (found.model, found.name) == (run_folder / "sft/s0", "poet")
    stages = found.stages()
    assert [s.name for s in stages] == ["prepare", "pretrain", "sft", "evaluate"]
    assert {s.state for s in stages} == {"finished"}
    assert stages[1].folder == run_folder / "pretrain/p0"


def test_work_in_progress_takes_the_place_of_what_it_replaces(run_folder: Path) -> None:
    partial = run_folder / "sft/s1.partial"
    write_metrics(partial, range(10, 31, 10))
    stages = {s.name: s for s in find_model(run_folder).stages()}
    assert (stages["sft"].state, stages["sft"].folder, stages["sft"].seconds) == ("running", partial, None)
    hour_ago = time.time() - 3600
    os.utime(partial / "metrics.jsonl", (hour_ago, hour_ago))
    stages = {s.name: s for s in find_model(run_folder).stages()}
    assert (stages["sft"].state, stages["sft"].folder) == ("finished", run_folder / "sft/s0")


def test_a_model_folder_brings_its_own_records(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    write_metrics(tmp_path, range(10, 21, 10))
    found = find_model(tmp_path)
    assert (found.model, found.name) == (tmp_path, tmp_path.name)
    assert [s.folder for s in found.stages()] == [tmp_path]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No model"),
        ({}, "neither a model"),
        ({"run.json": "{"}, "cannot be read"),
        ({"run.json": '{"recipe": "poet", "stages": {}}'}, "has no trained model yet"),
        ({"pretrain/p.partial/metrics.jsonl": ""}, "has no trained model yet"),
    ],
)
def test_a_folder_without_a_model_is_explained(tmp_path: Path, content: dict[str, str] | None, message: str) -> None:
    folder = tmp_path / "run"
    for name, text in ({} if content is None else content).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    if content == {}:
        folder.mkdir()
    with pytest.raises(InputError, match=message) as caught:
        find_model(folder)
    assert str(folder) in str(caught.value)


def test_metrics_are_followed_as_they_grow(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    assert not metrics.refresh()
    write_metrics(tmp_path, range(10, 61, 10))
    assert metrics.refresh()
    assert [step for step, _ in metrics.series["loss"]] == [10, 20, 30, 40, 50, 60]
    assert metrics.series["validation_loss"] == [(50, 7.6)]
    assert not metrics.refresh()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('not a number\n{"step": 70, "loss": 7.3, "note": "x"}\n{"step": 80, "lo')
    assert metrics.refresh()
    assert metrics.series["loss"][-1] == (70, 7.3)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('ss": 7.2}\n')
    assert metrics.refresh()
    assert metrics.series["loss"][-1] == (80, 7.2)


def test_metrics_rewound_by_a_resumed_run_are_read_anew(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    write_metrics(tmp_path, range(10, 61, 10))
    metrics.refresh()
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "loss": 9.0}\n')
    assert metrics.refresh()
    assert metrics.series == {"loss": [(10, 9.0)]}
