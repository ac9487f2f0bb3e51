"""What a training stage will cost, said before it starts."""

import json
from pathlib import Path

from wenfang.core.forecast import Forecast
from wenfang.core.hardware import matmul_flops
from wenfang.model.config import DecoderConfig
from wenfang.model.parts import RetroConfig
from wenfang.train.config import ExtendContextConfig, PretrainConfig, SftConfig, TrainConfig

COMPILE_S = 40.0
"""Seconds of compilation before the first step, on two cores with an empty cache."""
EFFICIENCY = 0.55
"""Share of a plain matrix product's speed that whole training steps reach (docs/log.md, 2026-11-23)."""
USUAL_VOCABULARY = 8192
"""Assumed where the tokenizer does not exist yet; the error is a few per cent of the time."""


def forecast_pretrain(config: PretrainConfig) -> Forecast:
    """Time, peak memory and disk of pretraining."""
    if config.model is not None:
        return _forecast(config, _shape(config.model))
    vocab_size = _vocabulary(config.tokenizer / "tokenizer.json") if config.tokenizer else USUAL_VOCABULARY
    reads = config.index is not None and config.retrieval.method == "retro"
    retro = RetroConfig(**config.retrieval.model_dump(exclude={"method"})) if reads else None
    shape = DecoderConfig(
        vocab_size=vocab_size,
        context=config.context,
        retro=retro,
        **{name: getattr(config, name) for name in ("dim", "layers", "heads", "kv_heads", "head_dim", "hidden")},
    )
    return _forecast(config, shape)


def forecast_sft(config: SftConfig) -> Forecast:
    """Time, peak memory and disk of fine-tuning; of a usual small model where the base does not exist yet."""
    shape = _shape(config.model)
    if config.adapter.method == "full":
        return _forecast(config, shape)
    # Frozen weights have no gradient, moments or copy in a checkpoint; the dense ones are there before and after.
    return _forecast(config, shape, bytes_per_weight=4 * 2)


def forecast_extend_context(config: ExtendContextConfig) -> Forecast:
    """Time, peak memory and disk of context extension."""
    return _forecast(config, _shape(config.model))


def _shape(folder: Path) -> DecoderConfig:
    """The architecture in a folder, or that of a usual small model where there is none yet."""
    from wenfang.core.errors import InputError
    from wenfang.model.folder import load_config

    try:
        return load_config(folder)
    except InputError:
        return DecoderConfig(vocab_size=USUAL_VOCABULARY)


def _forecast(config: TrainConfig, shape: DecoderConfig, *, bytes_per_weight: int = 4 * 5) -> Forecast:
    """`bytes_per_weight`: by default fp32 weights, gradients, two moments and the copy being written."""
    positions = config.batch * config.context
    flops = shape.training_flops(config.steps * config.accumulate * positions, config.context)
    logits = positions * shape.vocab_size * 10  # bf16 logits, fp32 softmax and its gradient
    activations = positions * shape.layers * (shape.dim * 24 + shape.hidden * 12 + shape.heads * config.context * 8)
    weights = shape.parameters * bytes_per_weight
    return Forecast(
        seconds=COMPILE_S * config.compile + flops / (EFFICIENCY * matmul_flops()),
        memory_bytes=int(0.7e9 + logits + activations + weights),
        disk_bytes=shape.parameters * (4 + 12 * (config.keep_checkpoints + 2)),
    )


def _vocabulary(path: Path) -> int:
    if not path.is_file():
        return USUAL_VOCABULARY
    return len(json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"])
