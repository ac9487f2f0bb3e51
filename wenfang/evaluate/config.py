"""Typed options of the evaluation stages."""

from pydantic import Field

from wenfang.core.config import Config, Corpus, ModelFolder
from wenfang.core.forecast import Forecast


class VerseConfig(Config):
    """Judge a poet: bits per character on held-out poets, and how well its own poems keep the rules."""

    model: ModelFolder
    """The poet to judge."""
    corpus: Corpus
    """The corpus whose held-out poems it is judged by."""
    poems: int = Field(default=200, gt=0)
    """Poems to ask for in each of the four forms, one per held-out title."""
    temperature: float = Field(default=1.0, ge=0)
    """Higher is bolder, lower steadier; 0 takes the likeliest."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Only the likeliest tokens with this total probability."""
    held_out: int = Field(default=1000, gt=0)
    """Held-out poems on which bits per character are measured."""
    batch: int = Field(default=64, gt=0)
    """Sequences computed together."""
    seed: int = 0
    """Decides which held-out poems are used, and what the poet writes."""


def forecast(config: VerseConfig) -> Forecast:
    """Time by poems written and judged, as measured on two cores with a poet of four million parameters."""
    return Forecast(seconds=5 + config.poems * 4 / 40 + config.held_out / 100, memory_bytes=1 << 30, disk_bytes=1 << 20)
