"""Stages as commands: the options are the config's, word for word."""

import re
from collections.abc import Iterator
from inspect import get_annotations
from pathlib import Path

import pytest
from cyclopts import App
from rich.cells import cell_len
from tiny_stages import TINY

from wenfang.cli import main
from wenfang.cli.chinese import OPTIONS, SUMMARIES
from wenfang.cli.verbs import verb
from wenfang.core.artifact import read_manifest
from wenfang.core.config import Config
from wenfang.recipe import STAGES, Stage


def _options(config: type[Config], prefix: str = "--") -> Iterator[tuple[str, tuple[str, str], str]]:
    """Each option of a config: its name, the class and field that declare it last, and its docstring."""
    for name, field in config.model_fields.items():
        option = prefix + name.replace("_", "-")
        if hasattr(field.annotation, "model_fields"):
            yield from _options(field.annotation, f"{option}.")
        else:
            declares = next(each for each in config.__mro__ if name in get_annotations(each))
            yield option, (declares.__name__, name), field.description or ""


def _help(stage: Stage, capsys: pytest.CaptureFixture[str]) -> str:
    app = App(help_format="plaintext")
    app.command(verb(stage))
    app([stage.name.partition(".")[2], "--help"], result_action="return_value")
    return capsys.readouterr().out


def test_each_option_and_nothing_else_is_explained_in_english_and_chinese() -> None:
    english = {key: text for stage in STAGES.values() for _, key, text in _options(stage.config_class())}
    chinese = {(config, field): text for config, texts in OPTIONS.items() for field, text in texts.items()}
    assert english.keys() == chinese.keys()
    assert all(text.endswith(".") for text in english.values())
    assert all(re.search("[一-鿿].*。$", text) for text in chinese.values())


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_help_explains_every_option_in_the_language_of_the_reader(
    stage: Stage, language: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WENFANG_LANGUAGE", language)
    monkeypatch.setenv("COLUMNS", "1000")
    shown = _help(stage, capsys)
    about = {"en": stage.config_class().__doc__ or "", "zh": SUMMARIES[stage.name]}[language]
    assert about.splitlines()[0] in shown
    for option, (config, field), docstring in _options(stage.config_class()):
        text = {"en": docstring, "zh": OPTIONS[config][field]}[language]
        assert re.search(rf" {option} .* {re.escape(text)} ", shown)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_help_fits_a_terminal_of_80_columns(
    stage: Stage, language: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WENFANG_LANGUAGE", language)
    monkeypatch.setenv("COLUMNS", "80")
    rows = _help(stage, capsys).splitlines()
    assert {cell_len(row) for row in rows if row.startswith(("╭", "│", "╰"))} == {80}
    assert max(map(cell_len, rows)) <= 80


def test_every_stage_and_nothing_else_has_a_chinese_summary() -> None:
    assert SUMMARIES.keys() == STAGES.keys()
    assert all("一" <= summary[0] <= "鿿" for summary in SUMMARIES.values())


def _main(words: str) -> int:
    return main(words.split())


class TestTiny:
    @pytest.fixture(autouse=True)
    def _tiny(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("wenfang.cli.verbs.STAGES", TINY)
        monkeypatch.setattr("wenfang.cli.app.STAGES", TINY)
        monkeypatch.setenv("COLUMNS", "200")
        Path("verse.txt").write_text("床前明月光", encoding="utf-8")

    def test_a_chain_by_hand_makes_what_a_recipe_makes(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert _main("tiny corpus --source verse.txt --more verse.txt --repeat 2 --out corpus") == 0
        assert (
            main(
                [
                    "tiny",
                    "model",
                    "--corpus",
                    "corpus",
                    "--epochs",
                    "2",
                    "--shape.dim",
                    "4",
                    "--shape.deep",
                    "--out",
                    "models/a",
                ]
            )
            == 0
        )
        assert (Path("models/a/model.txt")).read_text(encoding="utf-8") == "床前明月光" * 8
        assert read_manifest(Path("models/a")).config["shape"] == {"dim": 4, "deep": True}
        assert capsys.readouterr().out.splitlines()[1].startswith("models/a: loss 0.5123 · characters 40 · grade 甲 · ")

    def test_help_shows_defaults_and_an_example(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["tiny", "model", "--help"]) == 0
        shown = capsys.readouterr().out
        assert "It remembers the corpus `epochs` times." in shown
        assert "Passes over the corpus. [default: 1]" in shown
        assert "Example: `wenfang tiny model --corpus DIR --out DIR`" in shown

    def test_an_occupied_folder_is_left_alone(self, capsys: pytest.CaptureFixture[str]) -> None:
        Path("mine").mkdir()
        Path("mine/diary.txt").write_text("mine")
        assert main(["tiny", "corpus", "--source", "verse.txt", "--out", "mine"]) == 2
        assert "already holds something" in capsys.readouterr().err
        assert [path.name for path in Path("mine").iterdir()] == ["diary.txt"]
