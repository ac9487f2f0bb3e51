"""The base of every stage's config, and the markers that tell an input artifact from a plain value.

A config field typed `Corpus`, `TokenizerFolder`, `ModelFolder` … is an input: the recipe connects it to an
earlier stage with `${name}`, the command line takes a path, and its fingerprint stands for its content.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Typed options of one stage. Unknown keys are errors; field docstrings are the help in English."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


@dataclass(frozen=True)
class Input:
    """Marks a config field as an artifact made elsewhere."""

    kind: str
    """What its manifest must say."""
    file: str | None = None
    """What a folder from outside must hold to be one, so that any other is refused before all of it is read."""


Source = Annotated[Path, Input("source")]
"""Raw files from outside, fingerprinted by content."""
Corpus = Annotated[Path, Input("corpus", "train.parquet")]
Conversations = Annotated[Path, Input("conversations")]
TokenizerFolder = Annotated[Path, Input("tokenizer", "tokenizer.json")]
ModelFolder = Annotated[Path, Input("model", "config.json")]
ChunkIndex = Annotated[Path, Input("index", "chunks.safetensors")]


def input_fields(config: type[Config]) -> dict[str, Input]:
    """The input artifacts a config asks for, by field name; optional inputs (`Corpus | None`) included."""
    found = {}
    for name, field in config.model_fields.items():
        markers = [m for m in (*field.metadata, *_nested_metadata(field.annotation)) if isinstance(m, Input)]
        if markers:
            found[name] = markers[0]
    return found


def _nested_metadata(annotation: Any) -> tuple[Any, ...]:
    """Metadata of `Annotated` members inside a union such as `Corpus | None`."""
    return tuple(m for member in get_args(annotation) for m in getattr(member, "__metadata__", ()))
