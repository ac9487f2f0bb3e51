"""Configs: strict, frozen, and clear about which options are inputs."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from wenfang.core.config import Config, Corpus, ModelFolder, Source, input_fields


class Example(Config):
    """An example."""

    corpus: Corpus
    base: ModelFolder | None = None
    """Where to start from."""
    more: tuple[Source, ...] = ()
    folder: Path = Path("x")
    steps: int = 3


def test_inputs_are_told_from_plain_values() -> None:
    kinds = {name: wanted.kind for name, wanted in input_fields(Example).items()}
    assert kinds == {"corpus": "corpus", "base": "model", "more": "source"}


def test_docstrings_are_help_texts() -> None:
    assert Example.model_fields["base"].description == "Where to start from."


def test_an_unknown_option_is_an_error() -> None:
    with pytest.raises(ValidationError, match="stpes"):
        Example.model_validate({"corpus": "c", "stpes": 3})


def test_a_config_stays_as_it_is() -> None:
    config = Example(corpus=Path("c"))
    with pytest.raises(ValidationError, match="frozen"):
        config.steps = 4
