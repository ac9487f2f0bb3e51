"""What a model folder says about itself, read by the Hub's own parser of cards."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from wenfang.core.artifact import MANIFEST, Manifest
from wenfang.train.card import model_card
from wenfang.train.config import PretrainConfig

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PretrainConfig:
    monkeypatch.setenv("WENFANG_LANGUAGE", "en")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    manifest = Manifest(
        kind="corpus",
        stage="data.prepare",
        fingerprint="0123456789abcdef",
        config={},
        inputs={},
        summary={"poems": 1234, "regular_share": 0.5},
        seconds=1.0,
        files={},
    )
    (corpus / MANIFEST).write_text(manifest.model_dump_json(), encoding="utf-8")
    (corpus / "README.md").write_text("---\nlicense: mit\n---\n# Verse\n", encoding="utf-8")
    return PretrainConfig(steps=20, corpus=corpus, tokenizer=tmp_path / "tokenizer")


def _write_metrics(folder: Path) -> None:
    lines = [
        {"step": 10, "loss": 3.0, "bits_per_character": 4.5, "tokens_per_s": 100.0, "seconds": 60.0},
        {"step": 20, "loss": 2.0, "bits_per_character": 3.5, "tokens_per_s": 110.0, "seconds": 120.0},
        {"step": 20, "validation_loss": 2.5, "validation_bits_per_character": 4.0},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def test_the_card_says_what_it_was_made_from_and_what_it_cost(config: PretrainConfig, tmp_path: Path) -> None:
    _write_metrics(tmp_path)
    card = ModelCard(model_card("train.pretrain", config, {"validation_loss": 2.5}, tmp_path))
    assert card.data.library_name == "transformers"
    assert "corpus (data.prepare, 0123456789abcdef): licence mit, poems 1,234" in card.text
    assert "in 2.0 minutes" in card.text
    assert "| validation_loss | 2.5 |" in card.text
    assert '"steps": 20' in card.text
    assert "![loss, speed](curves.svg)" in card.text


def test_the_curves_are_drawn_from_the_metrics(config: PretrainConfig, tmp_path: Path) -> None:
    _write_metrics(tmp_path)
    model_card("train.pretrain", config, {}, tmp_path)
    first = (tmp_path / "curves.svg").read_bytes()
    words = [text.text for text in ET.fromstring(first).iter(f"{SVG}text")]
    assert {"bits per character", "training", "validation", "tokens/s"} <= set(words)
    model_card("train.pretrain", config, {}, tmp_path)
    assert (tmp_path / "curves.svg").read_bytes() == first


def test_without_metrics_or_licence_it_claims_neither(config: PretrainConfig, tmp_path: Path) -> None:
    (config.corpus / "README.md").write_text("# Verse\n", encoding="utf-8")
    text = model_card("train.pretrain", config, {}, tmp_path)
    assert "licence not stated" in text
    assert "curves" not in text
    assert "minutes" not in text
    assert not (tmp_path / "curves.svg").exists()


def test_what_the_base_was_made_from_is_told_with_its_licences(
    config: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base may have a base of its own, and a card in the other language."""
    base, middle = tmp_path / "base", tmp_path / "middle"
    for folder, language in ((base, "zh"), (middle, "en")):
        folder.mkdir()
        monkeypatch.setenv("WENFANG_LANGUAGE", language)
        (folder / "README.md").write_text(model_card("train.pretrain", config, {}, folder), encoding="utf-8")
        config = config.model_copy(update={"model": folder})
    lines = model_card("train.sft", config, {}, tmp_path).splitlines()
    start = lines.index("- model (middle): licence not stated")
    assert lines[start + 1 : start + 4] == [
        "  - corpus (data.prepare, 0123456789abcdef): licence mit, poems 1,234",
        "  - model (base): licence not stated",
        "    - corpus (data.prepare, 0123456789abcdef): 授權 mit, poems 1,234",
    ]
