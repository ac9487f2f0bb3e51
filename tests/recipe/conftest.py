"""Tiny stages, a folder to run them in, and recipes to write."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    from tiny_stages import RAN

    RAN.clear()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with a source file `verse.txt` in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "verse.txt").write_text("床前明月光", encoding="utf-8")
    return tmp_path


@pytest.fixture
def write(place: Path) -> Callable[[str], Path]:
    """Write a recipe `poet.yaml` and give its path, relative as a user would type it."""

    def _write(text: str) -> Path:
        (place / "poet.yaml").write_text(text, encoding="utf-8")
        return Path("poet.yaml")

    return _write
