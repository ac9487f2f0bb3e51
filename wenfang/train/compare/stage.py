"""The stage `model.compare`: several architectures learn the same, and what became of them."""

import json
from dataclasses import asdict
from pathlib import Path

import torch

from wenfang.core.artifact import Summary, check_artifact, write_atomically
from wenfang.core.forecast import Forecast
from wenfang.core.report import Reporter
from wenfang.model import Decoder
from wenfang.model.plan import plan_inference
from wenfang.tokenizer import Tokenizer
from wenfang.train.compare.config import CompareConfig
from wenfang.train.compare.data import Data, Text, running_text, with_neighbours
from wenfang.train.compare.measure import bits_per_byte, decode_tokens_per_s, longer
from wenfang.train.compare.result import Point, Result
from wenfang.train.compare.table import draw, markdown
from wenfang.train.loop import train
from wenfang.train.objective import activation_dtype, next_token
from wenfang.train.plan import plan_training

RESULT = "result.json"
EAGER_SHARE = 0.2
"""Share of a plain matrix product's speed that uncompiled steps of small decoders reach (docs/log.md, 2026-11-24)."""


def run(config: CompareConfig, out: Path, report: Reporter) -> Summary:
    """Train and measure each variant that has not been yet, then write `README.md`, `curves.svg` and `comparison.json`.

    Raises:
        InputError: an input is missing or damaged, or a variant is no decoder or does not fit the index.
        DataError: a split of the corpus is empty or shorter than the longest row.
    """
    check_artifact(config.corpus, "corpus")
    tokenizer = Tokenizer.load(config.tokenizer)
    shapes = {name: config.shape(name, tokenizer.vocab_size) for name in config.variants}
    data = (running_text if config.index is None else with_neighbours)(config, tokenizer, report)
    results = []
    for name, shape in shapes.items():
        place = out / name
        if not (place / RESULT).is_file():
            place.mkdir(exist_ok=True)
            torch.manual_seed(config.seed)
            model = Decoder(shape)
            model.initialise()
            result = _study(name, model, data, config, place, report)
            write_atomically(place / RESULT, json.dumps(asdict(result), indent=1).encode())
        results.append(Result.from_dict(json.loads((place / RESULT).read_bytes())))
        report.notice(f"{name}: {results[-1].bits_per_byte:.4f} bits/byte")
    write_atomically(out / "comparison.json", json.dumps([asdict(result) for result in results], indent=1).encode())
    (out / "README.md").write_text(markdown(results, config), encoding="utf-8")
    draw(results, out / "curves.svg")
    best = min(results, key=lambda result: result.bits_per_byte)
    return {"best": best.name} | {result.name: round(result.bits_per_byte, 4) for result in results}


def forecast(config: CompareConfig) -> Forecast:
    """Time by a small decoder's arithmetic at the speed of an uncompiled step, and a fixed cost per variant."""
    from wenfang.core.hardware import matmul_flops
    from wenfang.train.forecast import USUAL_VOCABULARY

    tokens = config.steps * config.accumulate * config.batch * config.context
    shapes = [config.shape(name, USUAL_VOCABULARY) for name in config.variants]
    flops = sum(shape.training_flops(tokens, config.context) for shape in shapes)
    logits = config.batch * config.context * USUAL_VOCABULARY * 16
    return Forecast(
        seconds=flops / (EAGER_SHARE * matmul_flops(activation_dtype(config))) + 20 * len(shapes),
        memory_bytes=1_000_000_000 + logits + 20 * max(shape.parameters for shape in shapes),
        disk_bytes=48 * max(shape.parameters for shape in shapes) + 1_000_000 * len(shapes),
    )


def _study(name: str, model: Decoder, data: Data, config: CompareConfig, place: Path, report: Reporter) -> Result:
    """Train one variant and measure it."""
    task = next_token(*data.sides(model.config), config)
    metrics = place / "metrics.jsonl"
    train(model, task, config, place, Reporter(metrics_path=metrics, console=report.console), label=name)
    model.eval()
    dtype, plan = activation_dtype(config), plan_inference(model.config, context=config.context)
    dtype_name = str(dtype).removeprefix("torch.")
    step = plan_training(
        model.config,
        batch=config.batch,
        context=config.context,
        optimizer=config.optimizer,
        dtype=dtype_name,
        compiled=config.compile,
    )
    flops = step.flops_per_token * config.batch * config.accumulate * config.context
    points = _curve(metrics, tokens_per_step=config.batch * config.accumulate * config.context, flops_per_step=flops)
    return Result(
        name=name,
        parameters=plan.parameters,
        active_parameters=plan.active_parameters,
        flops_per_token=step.flops_per_token,
        bits_per_byte=points[-1].bits_per_byte,
        curve=points,
        training_bytes=step.weights_bytes + step.optimizer_bytes + step.working_bytes,
        cache_bytes=plan.cache_bytes,
        decode_tokens_per_s=decode_tokens_per_s(model, config.decode_tokens),
        lengths=_lengths(model, data.text, config, dtype),
    )


def _lengths(model: Decoder, text: Text | None, config: CompareConfig, dtype: torch.dtype) -> dict[str, float]:
    """Bits per byte by length, and by length with YaRN; none where the architecture cannot be asked."""
    found: dict[str, float] = {}
    factor = 1
    while text is not None and factor <= config.extrapolate and config.extrapolate > 1:
        for yarn in (False, True) if factor > 1 else (False,):
            reader = longer(model, factor * config.context, yarn=yarn)
            if reader is not None:
                label = f"{factor}×" + " YaRN" * yarn
                found[label] = bits_per_byte(reader, text.ids, factor * config.context, text.bytes_per_token, dtype)
        factor *= 2
    return found


def _curve(metrics: Path, *, tokens_per_step: int, flops_per_step: float) -> list[Point]:
    """What the training loop measured, with the training time known at the nearest line before."""
    points, seconds = [], 0.0
    for line in metrics.read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        seconds = values.get("seconds", seconds)
        if "validation_loss" in values:
            step = values["step"]
            points.append(
                Point(step * tokens_per_step, step * flops_per_step, seconds, values["validation_bits_per_character"])
            )
    return points
