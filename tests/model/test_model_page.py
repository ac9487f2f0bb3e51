"""docs/model.md: its code runs, and its tables name every field and family there is."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from wenfang.model import DecoderConfig
from wenfang.model.families import FAMILIES
from wenfang.model.families.native import FAMILY as NATIVE
from wenfang.model.gguf.architectures import architecture_for
from wenfang.model.plan import read_shape

PAGE = (Path(__file__).parents[2] / "docs" / "model.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def rows(heading: str) -> list[list[str]]:
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def test_the_code_runs_from_top_to_bottom() -> None:
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(block, names)
    assert names["logits_BTV"].shape == (2, 32, 1000)


def test_every_field_stands_in_the_table() -> None:
    named = [name for row in rows("Fields") for name in re.findall(r"`(\w+)`", row[1])]
    assert sorted(named) == sorted(DecoderConfig.model_fields)


def test_every_family_stands_in_the_table_with_its_gguf_architecture() -> None:
    told = {row[1].strip("`"): row[2].strip("`") for row in rows("Families")}
    assert told == {name: architecture_for(name).name for name in FAMILIES if name != NATIVE.model_type}


def test_the_shape_is_planned_by_the_command(tmp_path: Path) -> None:
    (shape,), (command,) = blocks("yaml"), blocks("bash")
    (tmp_path / "shape.yaml").write_text(shape)
    assert read_shape(tmp_path / "shape.yaml").layers == 12
    words = [sys.executable, "-m", *command.split()]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "H100" in done.stdout


@pytest.mark.parametrize("name", ["README.md", "README.zh-TW.md"])
def test_both_readmes_lead_here(name: str) -> None:
    assert "docs/model.md" in (Path(__file__).parents[2] / name).read_text(encoding="utf-8")
