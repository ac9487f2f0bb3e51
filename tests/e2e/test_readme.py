"""What both READMEs tell a newcomer to type is there: each make target, each command with its options."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from e2e.tiny import ROOT

from wenfang.cli import main
from wenfang.cli.app import build_app
from wenfang.recipe import load_recipe
from wenfang.text.verse import check_verse, parse_reply

READMES = ("README.md", "README.zh-TW.md")
NEEDS_A_RUN = re.compile(r"\bruns/")


def _typed(name: str) -> list[list[str]]:
    """Words of every command in a README, those inside a sentence included."""
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`((?:wenfang|make) [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [words for line in lines if (words := shlex.split(line, comments=True))]


COMMANDS = list(dict.fromkeys(tuple(words) for name in READMES for words in _typed(name) if words[0] == "wenfang"))


def test_both_readmes_begin_with_the_two_commands_and_show_the_same_ones() -> None:
    english, chinese = map(_typed, READMES)
    assert english[:2] == [["make", "run"], ["make", "test"]]
    assert chinese == english


def test_make_knows_its_targets_and_runs_commands_that_exist() -> None:
    targets = {words[1] for name in READMES for words in _typed(name) if words[0] == "make"}
    ran = {}
    for target in targets:
        # What make would run in a folder where nothing has been installed.
        shown = subprocess.run(
            ["make", "--dry-run", target, "VENV=/nowhere"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert shown.returncode == 0, shown.stderr
        ran[target] = re.findall(r"^/nowhere/bin/(wenfang .*|python -m pytest.*)$", shown.stdout, flags=re.MULTILINE)
    assert ran.pop("test") == ["python -m pytest -n 2 --dist loadfile"]
    assert ran == {"run": ["wenfang run recipes/poet.yaml", "wenfang studio runs/poet"]}
    for command in ran["run"]:
        assert tuple(command.split()) in COMMANDS


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_is_one_the_command_line_takes(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # What a command writes does not stay in the project.
    for name in ("models", "recipes", "data"):
        (tmp_path / name).symlink_to(ROOT / name)
    command, bound, _ = build_app().parse_args(words[1:], exit_on_error=False, print_error=False)
    if words[1] == "run":
        load_recipe(bound.arguments["recipe"], bound.arguments.get("overrides", ()))  # Knows each stage and option.
    elif words[1] in ("chat", "serve", "studio"):
        assert command.__module__ == f"wenfang.cli.{words[1]}"
        assert NEEDS_A_RUN.match(words[2]) or (ROOT / words[2] / "config.json").is_file()
    else:
        assert main(words[1:]) == 0


def test_the_committed_poet_answers_as_shown(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (shown,) = [words for words in COMMANDS if words[1] == "chat"]
    monkeypatch.chdir(ROOT)
    assert main([*shown[1:], "--seed", "1"]) == 0
    said = capfd.readouterr()
    check = check_verse(parse_reply(said.out).poem)
    assert check.form is not None
    assert check.form.name in shown[-1]
    assert said.err == ""
