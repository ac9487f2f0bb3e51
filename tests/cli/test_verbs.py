"""Stages as commands: the options are the config's, word for word."""

from pathlib import Path

import pytest
from tiny_stages import TINY

from wenfang.cli import main
from wenfang.cli.verbs import verb
from wenfang.core.artifact import read_manifest
from wenfang.recipe import STAGES, Stage


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_help_shows_every_option_with_its_docstring(
    stage: Stage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    assert main([*stage.name.split("."), "--help"]) == 0
    shown = capsys.readouterr().out
    config = stage.config_class()
    assert str(config.__doc__).splitlines()[0] in shown
    for name, field in config.model_fields.items():
        nested = getattr(field.annotation, "model_fields", None)
        if nested is None:
            assert f"--{name.replace('_', '-')} " in shown
            assert " ".join((field.description or "").split()) in shown
        for inner in nested or ():
            assert f"--{name.replace('_', '-')}.{inner.replace('_', '-')} " in shown


def test_every_stage_says_what_it_does_in_chinese_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WENFANG_LANGUAGE", "zh")
    for stage in STAGES.values():
        assert "一" <= verb(stage).help[0] <= "鿿"


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
