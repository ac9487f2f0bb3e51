"""What a training stage will cost, said before it starts."""

import json
from pathlib import Path

from wenfang.core.forecast import Forecast
from wenfang.core.hardware import matmul_flops
from wenfang.model.config import DecoderConfig
from wenfang.model.parts import RetroConfig
from wenfang.train.config import AdapterConfig, ExtendContextConfig, PretrainConfig, SftConfig, TrainConfig

COMPILE_S = 40.0
"""Seconds of compilation before the first step, on two cores with an empty cache."""
EFFICIENCY = 0.55
"""Share of a plain matrix product's speed that whole training steps reach (docs/log.md, 2026-11-23)."""
READING_BYTES = 100_000_000
"""Resident size of what reads and packs a corpus (pyarrow, tokenizers, arrays), a usual one included."""
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
        tie_embeddings=config.tie_embeddings,
        **{name: getattr(config, name) for name in ("dim", "layers", "heads", "kv_heads", "head_dim", "hidden")},
    )
    return _forecast(config, shape)


def forecast_sft(config: SftConfig) -> Forecast:
    """Time, peak memory and disk of fine-tuning; of a usual small model where the base does not exist yet."""
    return _forecast(config, _shape(config.model), config.adapter)


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


def _forecast(config: TrainConfig, shape: DecoderConfig, adapter: AdapterConfig | None = None) -> Forecast:
    """Memory by the plan of one step, with what a whole run has beside it; time by the arithmetic. Processes on one
    processor share its memory; each GPU has its own."""
    from wenfang.train.objective import activation_dtype
    from wenfang.train.parallel import sizes
    from wenfang.train.placement import choose, has_compiler, memory_bytes
    from wenfang.train.plan import plan_training

    device, dtype = choose(config.device), activation_dtype(config)
    compiled = config.compile and has_compiler(device)
    processes, here = sizes()
    plan = plan_training(
        shape,
        batch=-(-config.batch // processes),
        context=config.context,
        adapter=adapter,
        optimizer=config.optimizer,
        dtype=str(dtype).removeprefix("torch."),
        compiled=compiled,
        recompute=config.recompute,
    )
    trained = 4 * plan.trained_parameters
    checkpoint = trained + plan.optimizer_bytes
    summed = trained if config.accumulate > 1 else 0  # Gradients stay while the next batch makes its activations.
    flops = shape.training_flops(config.steps * config.accumulate * config.batch * config.context, config.context)
    parts = processes if config.shard else 1
    whole = config.optimizer.name == "galore"  # Each process has all of its moments.
    shared = plan.weights_bytes + summed + (0 if whole else plan.optimizer_bytes)
    elsewhere = shared * (parts - 1) // parts
    process_bytes = plan.memory_bytes + summed + READING_BYTES - elsewhere
    options = {name: getattr(config, name, 0) for name in ("batch", "context", "layers", "dim")}
    return Forecast(
        lower=tuple(f"{name}={value}" for name, value in options.items() if value > 1),
        seconds=COMPILE_S * compiled + flops / processes / (EFFICIENCY * matmul_flops(dtype, str(device))),
        memory_bytes=process_bytes * (here if device.type == "cpu" else 1) + checkpoint,
        limit_bytes=memory_bytes(device),
        disk_bytes=4 * shape.parameters + checkpoint * (config.keep_checkpoints + 2),
    )


def _vocabulary(path: Path) -> int:
    if not path.is_file():
        return USUAL_VOCABULARY
    return len(json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"])
