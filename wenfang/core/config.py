"""The base of every stage's config, and the markers that tell an input artifact from a plain value.

A config field typed `Corpus`, `TokenizerFolder`, `ModelFolder` … is an input: the recipe connects it to an
earlier stage with `${name}`, the command line takes a path, and its fingerprint stands for its content.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Typed options of one stage. Unknown keys are errors; field docstrings are the help texts."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


@dataclass(frozen=True)
class Input:
    """Marks a config field as an artifact made elsewhere. `kind` is what its manifest must say."""

    kind: str


Source = Annotated[Path, Input("source")]
"""Raw files from outside, fingerprinted by content."""
Corpus = Annotated[Path, Input("corpus")]
Conversations = Annotated[Path, Input("conversations")]
TokenizerFolder = Annotated[Path, Input("tokenizer")]
ModelFolder = Annotated[Path, Input("model")]
ChunkIndex = Annotated[Path, Input("index")]


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
