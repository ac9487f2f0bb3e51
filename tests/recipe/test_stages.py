"""The stage table holds what it says, and the recipes in the repository are sound."""

import subprocess
import sys
from pathlib import Path

import pytest

from wenfang.core.config import Config, input_fields
from wenfang.recipe import STAGES, Stage, load_recipe

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "pyarrow", "transformers", "opencc", "nicegui", "fastapi", "numpy")


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_every_entry_leads_somewhere(stage: Stage) -> None:
    config = stage.config_class()
    assert issubclass(config, Config)
    assert config.__doc__
    assert "out" not in config.model_fields, "the command line needs --out for itself"
    assert callable(stage.function())
    assert callable(stage.forecast_function())


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_every_input_can_be_made_by_a_stage_or_comes_from_outside(stage: Stage) -> None:
    made = {other.kind for other in STAGES.values()} | {"source"}
    assert {wanted.kind for wanted in input_fields(stage.config_class()).values()} <= made


def test_configs_of_every_stage_load_nothing_heavy() -> None:
    code = (
        "import sys\nfrom wenfang.recipe import STAGES\n"
        "for stage in STAGES.values(): stage.config_class()\n"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/*.yaml")), ids=lambda path: path.stem)
def test_recipes_of_the_repository_are_sound(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert load_recipe(path.relative_to(ROOT)).name == path.stem
