"""`wenfang model`: folders and GGUF files shown and turned into each other, and talked with."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from wenfang.cli import main
from wenfang.engine import Engine
from wenfang.model import load_model
from wenfang.studio import find_model

POET = Path(__file__).parents[2] / "models" / "poet"
REQUEST = "寫一首五言絕句，題為〈秋夜〉。"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "poet.gguf"
    assert main(["model", "export", str(POET), "--out", str(path), "--dtype", "f32"]) == 0
    return path


def test_chat_takes_a_file_as_it_takes_a_folder(exported: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for model in (exported, POET):
        assert main(["chat", str(model), "--once", REQUEST, "--seed", "3", "--max-tokens", "20"]) == 0
    said = capfd.readouterr().out
    assert len(said) > 20
    assert said[: len(said) // 2] == said[len(said) // 2 :]


def test_a_gguf_file_becomes_a_folder_that_transformers_opens(exported: Path, tmp_path: Path) -> None:
    out = tmp_path / "poet"
    assert main(["model", "import", str(exported), "--out", str(out)]) == 0
    theirs, ours = AutoModelForCausalLM.from_pretrained(out), load_model(POET)
    ids = torch.arange(6, 40)[None]
    from wenfang.model.memory import Memory

    with torch.no_grad():
        logits = ours(ids, torch.arange(34)[None], Memory())
        torch.testing.assert_close(theirs(ids).logits, logits, rtol=1e-4, atol=1e-4)
    text = f"{REQUEST}\n白日依山盡，。\n"
    words = [AutoTokenizer.from_pretrained(folder) for folder in (out, POET)]
    assert words[0](text).input_ids == words[1](text).input_ids
    chat = [{"role": "user", "content": REQUEST}]
    assert words[0].apply_chat_template(chat, tokenize=False) == words[1].apply_chat_template(chat, tokenize=False)


def test_import_leaves_a_full_folder_alone(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("x")
    assert main(["model", "import", str(exported), "--out", str(tmp_path)]) == 2
    assert "already holds something" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_chat_says_the_same_from_either(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for model in (POET, exported):
        assert main(["chat", str(model), "--once", REQUEST, "--seed", "3", "--max-tokens", "12"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != "\n"


def test_the_studio_and_the_server_find_a_file(exported: Path) -> None:
    found = find_model(exported)
    assert (found.name, [stage.name for stage in found.stages()]) == ("poet", ["poet.gguf"])
    engine = Engine.load(found.model)
    engine.close()


@pytest.mark.parametrize("which", ["folder", "file"])
def test_show(which: str, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = POET if which == "folder" else exported
    assert main(["model", "show", str(path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["parameters"] == sum(weight.numel() for weight in load_model(POET).parameters())
    weights = path / "model.safetensors" if which == "folder" else path
    assert shown["weights_bytes"] == weights.stat().st_size
    assert main(["model", "show", str(path)]) == 0
    assert f"{shown['parameters']:,}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "verb", [["chat", "FILE", "--once", "x"], ["model", "show", "FILE"], ["model", "import", "FILE", "--out", "new"]]
)
def test_another_file_is_refused(verb: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a model")
    assert main([word if word != "FILE" else str(path) for word in verb]) == 2
    assert "is not a GGUF file" in capsys.readouterr().err


def test_a_path_that_leads_to_no_file_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, told in ((tmp_path / "x.gguf", "There is no file"), (tmp_path, "is a folder; a GGUF file is wanted")):
        assert main(["model", "import", str(path), "--out", str(tmp_path / "new")]) == 2
        assert told in " ".join(capsys.readouterr().err.split())


def test_export_makes_the_folder_of_its_file(tmp_path: Path) -> None:
    out = tmp_path / "files" / "poet.gguf"
    assert main(["model", "export", str(POET), "--out", str(out)]) == 0
    assert [path.name for path in out.parent.iterdir()] == ["poet.gguf"]


def test_a_plan_says_what_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape, machine = tmp_path / "shape.yaml", tmp_path / "machine.yaml"
    shape.write_text("{vocab_size: 500, dim: 64, layers: 1, heads: 1, kv_heads: 1, hidden: 96, context: 64}\n")
    machine.write_text("{name: mine, memory_gb: 0.4, bf16_tflops: 1, fp32_tflops: 0.5, gb_per_s: 20}\n")
    plan = ["model", "plan", str(shape), "--hardware", str(machine), "--batch", "512"]
    assert main(plan) == 0
    shown = capsys.readouterr().out
    assert shown.count("does not fit") == 3
    assert main([*plan, "--json"]) == 0
    account = json.loads(capsys.readouterr().out)
    assert [way["fits"] for way in account["inference"]] == [True, True]
    assert [way["fits"] for way in account["training"].values()] == [False] * 3
    # One decoder layer: keys and values of one head of 64, in bf16.
    assert account["inference"][0]["cache_bytes_per_token"] == 2 * 64 * 2
    assert main(["model", "plan", str(shape), "--hardware", "h10"]) == 2
    assert "'h100'" in capsys.readouterr().err
