"""Importing the package, or looking at its stages, loads nothing heavy: the command answers at once."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import wenfang.core

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "numpy", "pyarrow", "tokenizers", "transformers", "opencc", "nicegui", "fastapi", "uvicorn")
HOMES = {
    "Config": "wenfang.core.config",
    "InputError": "wenfang.core.errors",
    "Reporter": "wenfang.core.report",
    "Summary": "wenfang.core.artifact",
    "WenfangError": "wenfang.core.errors",
    "check_artifact": "wenfang.core.artifact",
    "say": "wenfang.core.language",
}
SCRIPT = """
import sys
loaded = lambda names: [name for name in names if name in sys.modules]
import wenfang
print(*loaded(sys.argv[1:] + ["pydantic", "rich"]))
import wenfang.core, wenfang.core.errors, wenfang.core.language, wenfang.recipe
print(*loaded(sys.argv[1:] + ["pydantic", "rich"]))
import wenfang.core.artifact, wenfang.core.config, wenfang.core.hardware, wenfang.core.report
from wenfang.recipe import STAGES
for stage in STAGES.values():
    stage.config_class()
print(*loaded(sys.argv[1:]))
"""


def _printed(script: str, *arguments: str) -> str:
    """What a script prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout


def test_nothing_heavy_is_loaded_before_it_is_needed() -> None:
    assert _printed(SCRIPT, *(name for name in HEAVY if name != "tokenizers")) == "\n\n\n"


def test_the_engine_does_not_load_the_compiler() -> None:
    """Which takes 1.5 s and 70 MB."""
    script = "import sys, wenfang.engine; print('torch' in sys.modules, 'torch._dynamo' in sys.modules)"
    assert _printed(script) == "True False\n"


def test_the_names_of_core_are_there_when_asked_for() -> None:
    assert sorted(wenfang.core.__all__) == sorted(HOMES)
    for name in HOMES:
        assert getattr(wenfang.core, name) is getattr(importlib.import_module(HOMES[name]), name)
    assert not hasattr(wenfang.core, "nothing")
