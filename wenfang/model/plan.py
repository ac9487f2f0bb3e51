"""What a model will take before there is one: weights, caches, working memory, arithmetic, speed.

Nothing here allocates or loads anything: the decoder runs on tensors without memory. How each way of training adds to
this is `wenfang.train.plan`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from wenfang.core.device import Device
from wenfang.core.errors import ModelError
from wenfang.core.language import say
from wenfang.model.config import DecoderConfig
from wenfang.model.decoder import Decoder
from wenfang.model.depth import Figures, measure_depth
from wenfang.model.families import family_of
from wenfang.model.folder import load_config
from wenfang.model.memory import AttentionSpec, Memory, State
from wenfang.model.size import active_parameters
from wenfang.model.trace import tracing

PROCESS_BYTES = 330_000_000
"""Resident size of Python with torch, its kernels and threads, before any model."""
FRAGMENTATION = 1.15
"""Resident size over live tensors: what malloc holds back between large blocks that come and go (docs/log.md,
2026-11-24)."""
MATMUL_SHARE = 0.55
"""Share of a plain matrix product's speed that whole prompts and training steps reach (docs/log.md, 2026-11-23)."""


@dataclass(frozen=True)
class InferencePlan:
    """What generating with a model takes."""

    parameters: int
    active_parameters: int
    """Weights that a token meets: of the experts, the chosen ones."""
    dtype: str
    context: int
    """Tokens of each sequence, prompt and answer."""
    sequences: int
    """Sequences that run at the same time."""
    weights_bytes: int
    active_bytes: int
    """Of the weights, what one decoding step of one sequence reads."""
    cache_bytes_per_token: int
    """Keys and values of one token over all attention layers."""
    state_bytes: int
    """Recurrent state of one sequence, whatever its length."""
    working_bytes: int
    """Activations and logits while a prompt of `context` tokens is read."""
    prompt_flops_per_token: float
    """Arithmetic per token of a prompt of `context` tokens."""
    decode_flops_per_token: float
    """Arithmetic of one token at the end of `context`."""
    decode_operations: int
    """Kernels that one decoding step starts."""

    @property
    def cache_bytes(self) -> int:
        """Caches and states of all sequences at full length."""
        return self.sequences * (self.context * self.cache_bytes_per_token + self.state_bytes)

    @property
    def memory_bytes(self) -> int:
        """Largest resident size of the process."""
        return PROCESS_BYTES + self.weights_bytes + self.cache_bytes + int(FRAGMENTATION * self.working_bytes)

    def prefill_tokens_per_s(self, device: Device) -> float:
        """Speed of reading a prompt, bound by matrix products."""
        return MATMUL_SHARE * device.flops(self.dtype) / self.prompt_flops_per_token

    def decode_tokens_per_s(self, device: Device) -> float:
        """Speed of writing, all sequences together: weights and caches are read once for each step, and each kernel
        takes its time to start."""
        read = self.active_bytes + self.cache_bytes
        arithmetic = self.sequences * self.decode_flops_per_token / (MATMUL_SHARE * device.flops(self.dtype))
        step = max(read / (device.gb_per_s * 1e9), arithmetic) + self.decode_operations * device.dispatch_us * 1e-6
        return self.sequences / step


def plan_inference(
    config: DecoderConfig, *, dtype: str = "bfloat16", context: int | None = None, sequences: int = 1
) -> InferencePlan:
    """What a decoder of this shape takes to generate.

    Args:
        config: the architecture.
        dtype: of weights, caches and activations, `float32` or `bfloat16`.
        context: tokens of each sequence; the model's own by default.
        sequences: how many run at the same time.
    """
    length = config.context if context is None else context
    kind: torch.dtype = getattr(torch, dtype)
    found = measure_depth(config, lambda shape, *_: _measure(shape, length, kind))
    active = active_parameters(config)
    idle = config.parameters - active
    return InferencePlan(
        parameters=config.parameters,
        active_parameters=active,
        dtype=dtype,
        context=length,
        sequences=sequences,
        weights_bytes=found["weights"],
        active_bytes=found["weights"] - (idle + _looked_up(config)) * kind.itemsize,
        cache_bytes_per_token=found["cache"],
        state_bytes=found["state"],
        working_bytes=found["working"],
        prompt_flops_per_token=found["prompt_flops"] / length,
        decode_flops_per_token=found["step_flops"] + _attention_flops(config, length),
        decode_operations=found["step_operations"],
    )


def read_shape(path: Path) -> DecoderConfig:
    """The architecture in a model folder, a GGUF file, a Hugging Face `config.json`, or a YAML (or JSON) file with the
    fields of `DecoderConfig`.

    Raises:
        InputError, ModelError: nothing is there, or it describes no decoder.
    """
    if path.suffix not in (".yaml", ".yml", ".json") or not path.is_file():
        return load_config(path)
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(values, dict) and "model_type" in values:
            return family_of(values).from_hf(values)
        return DecoderConfig.model_validate(values)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as error:
        detail = _reason(error) if isinstance(error, ValidationError) else str(error).splitlines()[0]
        raise ModelError(
            say(
                zh=f"{str(path)!r} 不是解碼器的設定：{detail}。",
                en=f"{str(path)!r} does not describe a decoder: {detail}.",
            )
        ) from None


def _reason(error: ValidationError) -> str:
    """The first fault: its field, unless the fault lies between fields, and what is wrong."""
    first = error.errors()[0]
    field, fault = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
    return f"{field}: {fault}" if field else fault


class _Kept(Memory):
    """One token of one sequence, counting what a cache would keep of it."""

    lasting = True

    def __init__(self) -> None:
        super().__init__()
        self.cache_bytes = self.state_bytes = 0

    def attend(self, layer: int, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTV: Tensor, spec: AttentionSpec) -> Tensor:
        self.cache_bytes += _bytes((k_BGTK,) if spec.latent is not None else (k_BGTK, v_BGTV))
        return super().attend(layer, q_BHTK, k_BGTK, v_BGTV, spec)

    def keep(self, place: str, state: State) -> None:
        self.state_bytes += _bytes(state)


def _measure(config: DecoderConfig, length: int, dtype: torch.dtype) -> Figures:
    """What a prompt and a decoding step take, bytes, operations and floating-point operations."""
    with tracing() as trace, torch.no_grad():
        model = _skeleton(config, dtype)
        weights = _bytes((*model.parameters(), *model.buffers()))
        before, flops = trace.live_bytes, trace.flops
        trace.take_peak()
        _forward(model, length, Memory())
        working, prompt_flops = trace.take_peak() - before, trace.flops - flops
        memory, operations, flops = _Kept(), trace.operations, trace.flops
        _forward(model, 1, memory)
    return {
        "weights": weights,
        "working": working,
        "prompt_flops": prompt_flops,
        "cache": memory.cache_bytes,
        "state": memory.state_bytes,
        "step_operations": trace.operations - operations,
        "step_flops": trace.flops - flops,
    }


def _skeleton(config: DecoderConfig, dtype: torch.dtype) -> Decoder:
    """A decoder whose weights are in `dtype`. `Module.to` would swap tensors, which a trace holds on to."""
    model = Decoder(config)
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    if config.tie_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    return model


def _forward(model: Decoder, length: int, memory: Memory) -> None:
    positions_1T = torch.arange(length)[None]
    states_1TD = model.hidden(torch.zeros_like(positions_1T), positions_1T, memory, model.dtype)
    model.logits(states_1TD[:, -1:])


def _attention_flops(config: DecoderConfig, length: int) -> float:
    """Scores and contexts of one query over `length` cached tokens."""
    _, key, value = config.kv_shape()
    width = key + (config.mla.kv_rank if config.mla else value)
    seen = sum(min(config.window(layer) or length, length) for layer in config.attention_layers)
    return 2.0 * config.heads * width * seen


def _looked_up(config: DecoderConfig) -> int:
    """Weights of tables of which a token reads one row."""
    table = 0 if config.tie_embeddings else config.vocab_size * config.dim
    return table + (config.context * config.dim if config.absolute_positions == "learned" else 0)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
