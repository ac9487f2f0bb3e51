"""engine: the one place that generates text — for chat, server, evaluation and whatever comes.

Requests share a batch as they come and go; each has its own sampling and seed. May import `model`, `tokenizer`
and `core`.
"""

from wenfang.engine.engine import Completion, Delta, Engine
from wenfang.engine.params import SamplingParams

__all__ = ["Completion", "Delta", "Engine", "SamplingParams"]
