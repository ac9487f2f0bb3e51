"""engine: the one place that generates text — for chat, server, evaluation and whatever comes.

Requests share a batch and a paged cache as they come and go; each has its own way of choosing tokens, and gets the
same text whatever else is in the batch. May import `model`, `tokenizer` and `core`.
"""

from wenfang.engine.completion import Completion, Delta, TokenLogprob
from wenfang.engine.engine import Engine
from wenfang.engine.interface import TextEngine
from wenfang.engine.params import SamplingParams
from wenfang.engine.remote import RemoteEngine
from wenfang.engine.scheduler import Occupancy
from wenfang.engine.search import BeamParams, ContrastiveParams
from wenfang.engine.speculation import DraftModel, LookAhead, Lookup, Speculation
from wenfang.engine.stream import Stream
from wenfang.engine.vllm import VllmEngine

__all__ = [
    "BeamParams",
    "Completion",
    "ContrastiveParams",
    "Delta",
    "DraftModel",
    "Engine",
    "LookAhead",
    "Lookup",
    "Occupancy",
    "RemoteEngine",
    "SamplingParams",
    "Speculation",
    "Stream",
    "TextEngine",
    "TokenLogprob",
    "VllmEngine",
]
