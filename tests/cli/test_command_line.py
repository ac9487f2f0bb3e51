"""The words of the command, its light start, and how mistakes are told."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from tiny_stages import RECIPE, TINY

from wenfang import __version__
from wenfang.cli import main
from wenfang.recipe import load_recipe

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "pyarrow", "transformers", "tokenizers", "opencc", "nicegui", "fastapi", "uvicorn", "numpy", "yaml")


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder where `wenfang run` and the verbs know the tiny stages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("wenfang.cli.run.load_recipe", partial(load_recipe, stages=TINY))
    monkeypatch.setattr("wenfang.cli.verbs.STAGES", TINY)
    monkeypatch.setattr("wenfang.cli.app.STAGES", TINY)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "verse.txt").write_text("床前明月光", encoding="utf-8")
    (tmp_path / "poet.yaml").write_text(RECIPE, encoding="utf-8")
    return tmp_path


def _said(capsys: pytest.CaptureFixture[str], *argv: str, code: int) -> str:
    """What was said on standard error, after checking the exit code and that no traceback is shown."""
    capsys.readouterr()
    assert main(argv) == code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def _python(code: str, *, language: str = "en") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WENFANG_LANGUAGE": language}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["run", "--help"], ["nonsense"]], ids=" ".join)
def test_starting_loads_nothing_heavy(argv: list[str]) -> None:
    heavy = HEAVY[:-1] if argv[0] == "run" else HEAVY
    done = _python(
        f"import sys; from wenfang.cli import main; main({argv!r})\n"
        f"print('heavy:', *[name for name in {heavy!r} if name in sys.modules])"
    )
    assert done.stdout.splitlines()[-1].split() == ["heavy:"]


def test_help_names_every_command_in_both_languages() -> None:
    english, chinese = (_python("from wenfang.cli import main; main(['--help'])", language=it) for it in ("en", "zh"))
    for word in ("run", "chat", "serve", "studio", "data", "tokenizer", "train", "evaluate", "--debug", "--version"):
        assert f"│ {word}" in english.stdout
        assert f"│ {word}" in chinese.stdout
    assert "wenfang run recipes/poet.yaml --dry-run" in english.stdout
    assert "Run a recipe" in english.stdout
    assert "執行配方" in chinese.stdout


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("rnu", "There is no command 'rnu'. Did you mean 'run'? See `wenfang --help`."),
        (
            "zzz",
            "There is no command 'zzz'. Known are run, chat, serve, studio, model, engine, metrics, tiny. "
            "See `wenfang --help`.",
        ),
        ("run", "RECIPE needs a value. See `wenfang run --help`."),
        ("run poet.yaml --dry", "There is no option '--dry'. Did you mean '--dry-run'? See `wenfang run --help`."),
        ("tiny crpus", "There is no command 'crpus'. Did you mean 'corpus'? See `wenfang tiny --help`."),
        ("tiny corpus --out x", "--source needs a value. See `wenfang tiny corpus --help`."),
        ("tiny model --corpus c", "--out needs a value. See `wenfang tiny model --help`."),
        ("tiny model --corpus c --out x --epoch 1", "There is no option '--epoch'. Did you mean '--epochs'?"),
        ("tiny model --corpus c --out x --epochs 1.5", "'epochs' is '1.5'; it must be a whole number."),
        ("tiny model --corpus c --out x --epochs 0", "'epochs' is '0'; it must be at least 1."),
        ("tiny model --corpus c --out x --epochs 101", "epochs (101) would take for ever; use at most 100"),
        ("tiny model --corpus c --out x --rate 11", "rate 11.0 explodes"),
        ("tiny model --corpus c --out x", "corpus: No folder 'c'. Check the path."),
        ("tiny corpus --source verse.txt --script latin --out x", "'script' is 'latin'; it must be"),
        ("run absent.yaml", "absent.yaml: no such recipe file. Check the path."),
        ("run poet.yaml base.epochs=two", "argument 'base.epochs=two': base (tiny.model): 'epochs' is 'two'"),
    ],
)
def test_mistakes_end_with_code_2_and_a_line_that_helps(
    tiny: Path, capsys: pytest.CaptureFixture[str], argv: str, said: str
) -> None:
    message = _said(capsys, *argv.split(), code=2)
    assert message.startswith(said)
    assert len(message.splitlines()) <= 2
    assert sorted(path.name for path in tiny.iterdir()) == ["poet.yaml", "verse.txt"]


def test_run_makes_keeps_and_tells(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "poet.yaml", "base.epochs=3", "--runs", "elsewhere"]) == 0
    told = capsys.readouterr()
    assert "[2/3] base (tiny.model)" in told.err
    rows = [line.split() for line in told.out.splitlines()]
    assert [row[:2] for row in rows[1:4]] == [["corpus", "made"], ["base", "made"], ["tuned", "made"]]
    assert "characters 20" in " ".join(rows[3])
    assert (tiny / "elsewhere/poet/run.json").is_file()
    assert main(["run", "poet.yaml", "base.epochs=3", "--runs", "elsewhere"]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[1:4]] == ["kept"] * 3


def test_a_dry_run_tells_and_does_nothing(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "poet.yaml", "--dry-run"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[2] == ["base", "tiny.model", "to", "run", "1", "min", "30", "s", "1.0", "MB", "1.0", "kB"]
    assert not (tiny / "runs").exists()
    said = _said(capsys, "run", "poet.yaml", "base.memory_bytes=1000000000000000000", "--dry-run", code=2)
    assert said.startswith("base needs about 1,000,000,000.0 GB of memory")


def test_failures_of_the_machine_are_one_line(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = _said(capsys, "tiny", "broken", "--how", "disk", "--out", "x", code=2)
    assert said.endswith("model.safetensors: The disk is full. Free some space and run the same command.\n")
    forecast = "Forecast: 1.0 s, 1.0 MB of memory, 1.0 kB of disk.\n"
    assert said.startswith(forecast)
    assert len(said.splitlines()) == 2
    said = _said(capsys, "tiny", "broken", "--out", "x", code=2)
    assert said == f"{forecast}the corpus is empty\n"
    (tiny / "file").write_text("")
    said = _said(capsys, "run", "poet.yaml", "--runs", "file", code=2)
    assert said.startswith("Cannot write in 'file")
    assert len(said.splitlines()) == 1


def test_debug_shows_the_traceback_too(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tiny", "broken", "--out", "x", "--debug"]) == 2
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "DataError" in said
    assert said.endswith("the corpus is empty\n")


def test_help_speaks_one_language() -> None:
    """cyclopts's own words, too."""
    shown = {
        it: _python("from wenfang.cli import main; main(['model', 'import', '--help'])", language=it)
        for it in ("en", "zh")
    }
    words = {
        "en": ("Usage: wenfang", "[required]", "[choices: float32,", "[default:"),
        "zh": ("用法：wenfang", "[必填]", "[可選：float32,", "[預設：float32]"),
    }
    for spoken, other in (("en", "zh"), ("zh", "en")):
        assert all(word in shown[spoken].stdout for word in words[spoken])
        assert not any(word in shown[spoken].stdout for word in words[other])
