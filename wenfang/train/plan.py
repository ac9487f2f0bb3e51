"""What each way of training takes, found by taking a step on tensors without memory."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from wenfang.core.device import Device
from wenfang.model import Decoder, DecoderConfig
from wenfang.model.depth import Figures, measure_depth
from wenfang.model.plan import FRAGMENTATION, MATMUL_SHARE, PROCESS_BYTES
from wenfang.model.trace import tracing
from wenfang.train.adapter import adapt
from wenfang.train.config import AdapterConfig, OptimizerConfig
from wenfang.train.loss import cross_entropy_sum
from wenfang.train.optimizer import make_optimizers
from wenfang.train.recompute import recompute_blocks

COMPILED_SHARE = {"full": 0.72, "adapter": 0.76}
"""Activations of a compiled step over those of an eager one, by what is trained (docs/log.md, 2026-11-27)."""
RETAINED = {"full": 1.35, "adapter": 1.6}
"""Resident size over live tensors of an eager step whose freed memory stays with the process, by what is trained (there
too). A compiled step reuses its blocks as planned."""
CODE_BYTES = {False: 30_000_000, True: 110_000_000}
"""Resident size of what training loads besides torch, uncompiled and compiled."""
GRAPH_BYTES = {"full": 3_000_000, "adapter": 18_000_000}
"""Resident size of what the compiler makes and keeps of a layer, by what is trained (there too)."""


@dataclass(frozen=True)
class TrainingPlan:
    """What one training step takes."""

    trained: Literal["full", "adapter"]
    trained_parameters: int
    dtype: str
    """Arithmetic of the activations; trained weights and their optimiser rest in fp32."""
    batch: int
    context: int
    weights_bytes: int
    """Trained and frozen weights, in the formats they rest in."""
    optimizer_bytes: int
    """Moments and what else the optimiser keeps."""
    working_bytes: int
    """Activations, gradients and temporary copies at the step's peak."""
    loading_bytes: int
    """Dense fp32 weights, which are there before freezing and after merging."""
    compiled: bool
    code_bytes: int
    """Resident size of what is loaded besides torch, and of what the compiler makes."""
    flops_per_token: float
    """Arithmetic of one step per token, backward included."""

    @property
    def memory_bytes(self) -> int:
        """Largest resident size of the process."""
        process = PROCESS_BYTES + self.code_bytes
        step = self.weights_bytes + self.optimizer_bytes + self.working_bytes
        slack = FRAGMENTATION if self.compiled else RETAINED[self.trained]
        return process + max(int(slack * step), self.weights_bytes + self.loading_bytes)

    def tokens_per_s(self, device: Device) -> float:
        """Speed of training, bound by matrix products."""
        return MATMUL_SHARE * device.flops(self.dtype) / self.flops_per_token


def plan_training(
    config: DecoderConfig,
    *,
    batch: int,
    context: int,
    adapter: AdapterConfig | None = None,
    optimizer: OptimizerConfig | None = None,
    dtype: str = "bfloat16",
    compiled: bool = False,
    recompute: bool = False,
) -> TrainingPlan:
    """What a training step of a decoder of this shape takes.

    Args:
        config: the architecture.
        batch: rows per forward pass.
        context: tokens per row.
        adapter: what is trained; every weight by default.
        optimizer: AdamW by default.
        dtype: arithmetic of the activations, `float32` or `bfloat16`.
        compiled: whether the step runs through torch.compile.
        recompute: whether blocks keep their inputs alone.

    Raises:
        InputError: the adapter's targets are not projections of this model.
    """
    way = adapter or AdapterConfig()
    step = partial(
        _measure,
        batch=batch,
        context=context,
        adapter=way,
        optimizer=optimizer or OptimizerConfig(name="adamw"),
        dtype=getattr(torch, dtype),
        recompute=recompute,
    )
    found = measure_depth(config, step)
    resting = found["weights"] + found["states"]
    working = max(figure for name, figure in found.items() if name.startswith("peak")) - resting
    trained: Literal["full", "adapter"] = "full" if way.method == "full" else "adapter"
    return TrainingPlan(
        trained=trained,
        trained_parameters=found["trained"],
        dtype=dtype,
        batch=batch,
        context=context,
        weights_bytes=found["weights"],
        optimizer_bytes=found["states"],
        working_bytes=int(working * (COMPILED_SHARE[trained] if compiled else 1)),
        loading_bytes=found["dense"] if way.method != "full" else 0,
        compiled=compiled,
        code_bytes=CODE_BYTES[compiled] + (config.layers * GRAPH_BYTES[trained] if compiled else 0),
        flops_per_token=found["flops"] / (batch * context),
    )


def _measure(
    config: DecoderConfig,
    first_end: int,
    last_start: int,
    *,
    batch: int,
    context: int,
    adapter: AdapterConfig,
    optimizer: OptimizerConfig,
    dtype: torch.dtype,
    recompute: bool,
) -> Figures:
    """What a step takes: bytes at rest, peaks of its parts, floating-point operations.

    The way back through the repeats between the first and the last one is left out: from layer to layer activations go
    and gradients come at a constant rate, so one of its ends has the peak, and each end is linear in the repeats.
    """
    with tracing() as trace:
        model = Decoder(config)
        dense = trace.live_bytes
        adapt(model, adapter)
        if recompute:
            recompute_blocks(model)
        weights = _bytes((*model.parameters(), *model.buffers()))
        optimizers = make_optimizers(model, optimizer)
        _make_state(model, optimizers)
        peaks: Figures = {}

        def take(part: str) -> None:
            peaks[f"peak {part}"] = trace.take_peak()

        _when_differentiated(model.layers[last_start], lambda: take("last repeat"))
        _when_differentiated(model.layers[first_end], trace.take_peak)
        trace.flops = 0
        trace.take_peak()
        ids_BT = torch.zeros(batch, context, dtype=torch.long)
        documents_BT, positions_BT = torch.zeros_like(ids_BT), torch.arange(context).expand(batch, -1)
        total = cross_entropy_sum(
            model, ids_BT, ids_BT, documents_BT, positions_BT, dtype, neighbours_BSNR=_neighbours(config, ids_BT)
        )
        take("forward")
        (total / ids_BT.numel()).backward()
        take("first repeat")
        _update(model, optimizers, take)
        states = [value for each in optimizers for state in each.state.values() for value in state.values()]
        return {
            "dense": dense,
            "weights": weights,
            "states": _bytes(value for value in states if isinstance(value, Tensor)),
            "trained": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
            "flops": trace.flops,
            **peaks,
        }


def _update(model: Decoder, optimizers: list[Optimizer], take: Callable[[str], None]) -> None:
    """Move the weights of one shape after those of another: an optimiser may join all of a shape in one product, so it
    is the peak of each shape that is linear in the layers."""
    gradients = {weight: weight.grad for weight in model.parameters()}
    for shape in dict.fromkeys(weight.shape for weight in gradients):
        for weight, gradient in gradients.items():
            weight.grad = gradient if weight.shape == shape else None
        for optimizer in optimizers:
            optimizer.step()
        take(f"update {list(shape)}")


def _when_differentiated(block: nn.Module, act: Callable[[], object]) -> None:
    """Have `act` called when the way back has left a block, if it goes so far down."""

    def act_once(gradient_BTD: Tensor) -> None:
        act()

    def listen(block: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].requires_grad:
            inputs[0].register_hook(act_once)

    block.register_forward_pre_hook(listen)


def _neighbours(config: DecoderConfig, ids_BT: Tensor) -> Tensor | None:
    """Neighbours of every chunk of the rows, for a decoder that reads them."""
    B, T = ids_BT.shape
    return None if config.retro is None else ids_BT.new_zeros(B, T // config.retro.chunk, *config.retro.shape)


def _make_state(model: Decoder, optimizers: list[Optimizer]) -> None:
    """Have the optimisers make what they keep, as their first step does."""
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
