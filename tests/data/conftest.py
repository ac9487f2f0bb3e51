"""A small source of verse, real poems under real names."""

import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

EXTRACT = Path(__file__).parents[2] / "data" / "verse"


@pytest.fixture(scope="session")
def rows() -> dict[str, list[str]]:
    """Lines of the committed extract by dynasty: every 60th of Tang, every 300th of Song."""
    steps = {"tang": 60, "song": 300}
    return {
        dynasty: lzma.decompress((EXTRACT / f"{dynasty}.tsv.xz").read_bytes()).decode().splitlines()[::step]
        for dynasty, step in steps.items()
    }


@pytest.fixture(scope="session")
def write_source() -> Callable[[Path, dict[str, list[str]]], Path]:
    """Writes lines by dynasty as a source folder, and returns the folder."""

    def write(folder: Path, rows: dict[str, list[str]]) -> Path:
        folder.mkdir(exist_ok=True)
        for dynasty, lines in rows.items():
            data = "".join(line + "\n" for line in lines).encode()
            (folder / f"{dynasty}.tsv.xz").write_bytes(lzma.compress(data))
        return folder

    return write


@pytest.fixture
def source(tmp_path: Path, rows: dict[str, list[str]], write_source: Callable[..., Path]) -> Path:
    """A source folder with about 1,100 poems."""
    return write_source(tmp_path / "verse", rows)
