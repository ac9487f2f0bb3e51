"""The tiny recipe, run once to its end for all the tests that look at a finished run."""

from pathlib import Path

import pytest
from e2e.tiny import Finished, prepare, wenfang


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Tests may run things here, but nothing that changes what is here."""
    place = prepare(tmp_path_factory.mktemp("finished") / "place")
    stdout, stderr = wenfang(place, "run", "tiny.yaml")
    return Finished(place, stdout, stderr)


@pytest.fixture
def place(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: the same source and recipe, nothing made yet."""
    prepare(tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"
