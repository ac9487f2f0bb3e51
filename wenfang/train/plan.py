"""What each way of training takes, found by taking a step on tensors without memory."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from wenfang.core.device import Device
from wenfang.model import Decoder, DecoderConfig
from wenfang.model.plan import FRAGMENTATION, MATMUL_SHARE, PROCESS_BYTES
from wenfang.model.trace import tracing
from wenfang.train.adapter import adapt
from wenfang.train.config import AdapterConfig, OptimizerConfig
from wenfang.train.loss import cross_entropy_sum
from wenfang.train.optimizer import make_optimizers
from wenfang.train.recompute import recompute_blocks

COMPILED_SHARE = 0.53
"""Activations of a compiled step over those of an eager one (docs/log.md, 2026-11-24)."""
RETAINED = 1.4
"""Resident size over live tensors of an eager step whose freed memory stays with the process (docs/log.md, 2026-11-24).
A compiled step reuses its blocks as planned."""
CODE_BYTES = {False: 30_000_000, True: 50_000_000}
"""Resident size of what training loads besides torch, uncompiled and compiled."""


@dataclass(frozen=True)
class TrainingPlan:
    """What one training step takes."""

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
    flops_per_token: float
    """Arithmetic of one step per token, backward included."""

    @property
    def memory_bytes(self) -> int:
        """Largest resident size of the process."""
        process = PROCESS_BYTES + CODE_BYTES[self.compiled]
        step = self.weights_bytes + self.optimizer_bytes + self.working_bytes
        slack = FRAGMENTATION if self.compiled else RETAINED
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
    with tracing() as trace:
        model = Decoder(config)
        dense = trace.live_bytes
        adapt(model, adapter or AdapterConfig())
        if recompute:
            recompute_blocks(model)
        weights = _bytes((*model.parameters(), *model.buffers()))
        optimizers = make_optimizers(model, optimizer or OptimizerConfig(name="adamw"))
        _make_state(model, optimizers)
        trace.flops, trace.peak_bytes = 0, trace.live_bytes
        ids_BT = torch.zeros(batch, context, dtype=torch.long)
        documents_BT, positions_BT = torch.zeros_like(ids_BT), torch.arange(context).expand(batch, -1)
        total = cross_entropy_sum(
            model,
            ids_BT,
            ids_BT,
            documents_BT,
            positions_BT,
            getattr(torch, dtype),
            neighbours_BSNR=_neighbours(config, ids_BT),
        )
        (total / ids_BT.numel()).backward()
        for each in optimizers:
            each.step()
        states = [value for each in optimizers for state in each.state.values() for value in state.values()]
        kept = _bytes(value for value in states if isinstance(value, Tensor))
        working = trace.peak_bytes - weights - kept
        trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    return TrainingPlan(
        trained_parameters=trained,
        dtype=dtype,
        batch=batch,
        context=context,
        weights_bytes=weights,
        optimizer_bytes=kept,
        working_bytes=int(working * (COMPILED_SHARE if compiled else 1)),
        loading_bytes=dense if adapter and adapter.method != "full" else 0,
        compiled=compiled,
        flops_per_token=trace.flops / (batch * context),
    )


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
