"""`wenfang run` from raw verse to a poet, again, with changes, and killed wherever it can be."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
from e2e.tiny import STAGES, Finished, contents, output, start, states, wenfang
from transformers import AutoModelForCausalLM, AutoTokenizer

from wenfang.cli import main
from wenfang.engine import Engine, SamplingParams
from wenfang.model import load_model
from wenfang.model.memory import Memory

ASK = "寫一首五言絕句，題為〈秋夜〉。"


def _marks(place: Path) -> dict[Path, int]:
    """When each file below a folder was last written, `run.json` aside."""
    return {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file() and path.name != "run.json"}


def test_raw_verse_in_a_poet_out(finished: Finished) -> None:
    assert states(finished.stdout) == dict.fromkeys(STAGES, "made")
    assert finished.stdout.splitlines()[-1].split()[0] == "total"
    run = json.loads((finished.place / "runs/tiny/run.json").read_text(encoding="utf-8"))
    assert list(run["stages"]) == list(STAGES)
    for name, stage in run["stages"].items():
        assert finished.place / "runs/tiny" / stage["path"] == finished.output(name)
        assert stage["seconds"] > 0
        assert stage["summary"]
    left = {path.name for path in finished.place.rglob("*") if path.name.endswith((".partial", ".lock"))}
    assert left == set()


def test_progress_is_told_with_figures(finished: Finished) -> None:
    for number, name in enumerate(STAGES, start=1):
        assert f"[{number}/6] {name} (" in finished.stderr
    assert re.search(
        r"pretraining 60/60 loss [\d.]+ · [\d.]+ bits/byte · [\d.]+ bits/char · [\d,]+ tokens/s", finished.stderr
    )
    steps = [json.loads(line) for line in (finished.output("sft") / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "loss" in line] == [10, 20, 30, 40, 50, 60]


def test_transformers_opens_the_poet_without_code_of_ours(finished: Finished) -> None:
    folder = finished.output("sft")
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": ASK}], add_generation_prompt=True)["input_ids"]
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits
        ours = load_model(folder)(torch.tensor([ids]), torch.arange(len(ids))[None], Memory())
    # The same fp32 arithmetic in another order of summation.
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_a_second_run_does_nothing(finished: Finished) -> None:
    before = _marks(finished.place)
    stdout, stderr = wenfang(finished.place, "run", "tiny.yaml", PYTHONPROFILEIMPORTTIME="1")
    assert states(stdout) == dict.fromkeys(STAGES, "kept")
    assert _marks(finished.place) == before
    # Quick, whatever else the machine does: what takes the time to start is not even imported.
    imported = set(re.findall(r"^import time:.*\| +(\S+)$", stderr, flags=re.MULTILINE))
    assert "wenfang.core.report" in imported
    assert not imported & {"torch", "numpy", "pyarrow", "nicegui"}


def test_a_change_reruns_what_depends_on_it_and_nothing_else(finished: Finished, tmp_path: Path) -> None:
    place = shutil.copytree(finished.place, tmp_path / "place")
    before = contents(place)
    stdout, _ = wenfang(place, "run", "tiny.yaml", "sft.steps=10")
    changed = ("sft", "evaluate")
    assert states(stdout) == {name: "made" if name in changed else "kept" for name in STAGES}
    assert {name: len(list((place / "runs/tiny" / name).iterdir())) for name in STAGES} == {
        name: 2 if name in changed else 1 for name in STAGES
    }
    assert before.items() <= contents(place).items()
    stdout, _ = wenfang(place, "run", "tiny.yaml")
    assert states(stdout) == dict.fromkeys(STAGES, "kept")


def test_a_dry_run_tells_what_a_change_costs_and_does_nothing(finished: Finished) -> None:
    before = _marks(finished.place)
    stdout, stderr = wenfang(finished.place, "run", "tiny.yaml", "pretrain.steps=6000", "--dry-run")
    rows = {line.split()[0]: line for line in stdout.splitlines() if line}
    assert [name for name in STAGES if "kept" in rows[name]] == ["corpus", "conversations", "tokenizer"]
    assert [name for name in STAGES if "to run" in rows[name]] == ["pretrain", "sft", "evaluate"]
    assert re.search(r"\d s .*B .*B$", rows["total"].rstrip())
    assert _marks(finished.place) == before
    assert stderr == ""


def test_stages_by_hand_make_what_the_recipe_makes(finished: Finished, place: Path) -> None:
    for words in (
        "data prepare --source verse --dynasties tang --validation-share 0.2 --out corpus",
        "data converse --corpus corpus --out conversations",
        "tokenizer train --corpus corpus --vocab-size 600 --character-coverage 0.9 --out tokenizer",
    ):
        assert main(words.split()) == 0
    for stage in ("corpus", "conversations", "tokenizer"):
        assert contents(place / stage) == contents(finished.output(stage))


def test_chat_says_what_the_engine_writes(finished: Finished) -> None:
    stdout, stderr = wenfang(finished.place, "chat", "runs/tiny", "--once", ASK, "--seed", "7")
    engine = Engine.load(finished.output("sft"))
    prompt = engine.tokenizer.chat([{"role": "user", "content": ASK}])
    (expected,) = engine.generate([prompt], SamplingParams(top_p=0.95, seed=7))
    engine.close()
    assert stdout == expected.text + "\n"
    assert stderr == ""


MOMENTS = (
    ("corpus", ""),
    ("tokenizer", ""),
    ("pretrain", "checkpoints/*.safetensors"),
    ("sft", "checkpoints/*.safetensors"),
    ("evaluate", ""),
)
"""A stage, and the file in its unfinished work that must be there when the run is killed."""


def _kill(place: Path, stage: str, file: str) -> str:
    """Start the recipe and kill it at a moment; returns what it had said."""
    folder = place / "runs/tiny" / stage
    while True:
        process = start(place, "run", "tiny.yaml")
        while process.poll() is None and not list(folder.glob(f"*.partial/{file}")):
            time.sleep(0.001)
        process.kill()
        _, said = process.communicate(timeout=60)
        if process.returncode == -9:
            return said
        assert process.returncode == 0, said
        shutil.rmtree(folder)  # On a busy machine the moment may pass before it is seen: once more.


def test_killed_in_every_stage_it_ends_as_if_nothing_had_happened(
    finished: Finished, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = {}
    for moment in MOMENTS:
        said[moment] = _kill(place, *moment)
        if moment[0] == "corpus":
            assert main(["chat", "runs/tiny", "--once", ASK]) == 2
            assert "has no trained model yet" in capfd.readouterr().err
    assert "[3/6] tokenizer (tokenizer.train) unchanged, kept." in said["evaluate", ""]
    # The run that was killed in sft had gone on with the pretraining that was killed before.
    assert "Continuing from an interrupted run.\n" in said["sft", "checkpoints/*.safetensors"]
    assert "resuming from step" in said["sft", "checkpoints/*.safetensors"]
    stdout, _ = wenfang(place, "run", "tiny.yaml")
    assert states(stdout) == {name: "made" if name == "evaluate" else "kept" for name in STAGES}
    assert contents(place) == contents(finished.place)
    for stage in ("pretrain", "sft"):
        lines = [
            [json.loads(line) for line in (output(folder, stage) / "metrics.jsonl").read_text().splitlines()]
            for folder in (place, finished.place)
        ]
        losses = [[(line["step"], line.get("loss"), line.get("validation_loss")) for line in run] for run in lines]
        assert losses[0] == losses[1]
