"""What tests of commands start from: the recipe tests' tiny stages, and a model."""

import sys
from pathlib import Path

import pytest
from serve.fakes import tiny_model

sys.path.insert(0, str(Path(__file__).parents[1] / "recipe"))


@pytest.fixture(scope="module")
def model(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model as a folder."""
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny", tokenizer_folder)
