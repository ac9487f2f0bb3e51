"""Started by `test_gpu_steps`: the forward pass and the update on a GPU that is not there. Prints what it tried.

Tensors have shapes and devices but no numbers (FakeTensorMode). It fails where tensors of two devices meet, and where
the step waits for the GPU: to read a number, or to copy from memory that is not pinned. It shows nothing of kernels,
their numbers or their speed, and nothing of the way back, for which torch's autograd wants a real GPU: that runs in
`test_placement`, on the device `meta`.
"""

import ctypes
import sys
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from train.zoo import ADAPTERS, DECODERS, OPTIMIZERS, SHAPE, neighbours

from wenfang.model import Decoder, DecoderConfig
from wenfang.train import flex
from wenfang.train.adapter import adapt
from wenfang.train.config import AdapterConfig, OptimizerConfig
from wenfang.train.loss import cross_entropy_sum
from wenfang.train.optimizer import make_optimizers

COPYING = {"alibi", "adam8bit"}
"""ALiBi's slopes are copied once a step. The levels of eight bits are kept, but not those that have no numbers."""
ATTENDED = list[str]()
"""The devices on which FlexAttention was asked for."""


class Awake(TorchDispatchMode):
    """Refuses what makes the processor wait for the GPU; numbers that are beside it are all 1."""

    def __init__(self, *, may_copy: bool = False) -> None:
        super().__init__()
        self._may_copy = may_copy

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        read = operation is torch.ops.aten._local_scalar_dense.default
        if read and args[0].device.type == "cpu":
            return 1
        result = operation(*args, **(kwargs or {}))
        copied = operation is torch.ops.aten._to_copy.default and args[0].device != result.device
        waits = read or (copied and not self._may_copy)
        assert not waits, operation
        return result


def step(device: str, name: str, changes: dict[str, Any], adapter: AdapterConfig, optimizer: str) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        with torch.device(device):
            model = Decoder(DecoderConfig(vocab_size=50, **(SHAPE | changes)))
            adapt(model, adapter)
            ids_BT = torch.zeros(2, 16, dtype=torch.long)
            for weight in model.parameters():
                weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
        optimizers = make_optimizers(model, OptimizerConfig(name=optimizer))
        lose(model, ids_BT)
        with Awake(may_copy=True):  # Tables are copied once.
            update(optimizers)
        with Awake(may_copy=bool({name, optimizer} & COPYING)):
            nats = lose(model, ids_BT)
            update(optimizers)
        assert nats.device.type == device
        states = [value for each in optimizers for state in each.state.values() for value in state.values()]
        assert all(value.device.type == device or value.dim() == 0 for value in states)


def lose(model: Decoder, ids_BT: Tensor) -> Tensor:
    known, dtype = neighbours(model.config, ids_BT), torch.bfloat16
    return cross_entropy_sum(
        model, ids_BT, ids_BT, ids_BT, ids_BT, dtype, label_smoothing=0.1, z_loss=0.1, neighbours_BSNR=known
    )


def update(optimizers: list[torch.optim.Optimizer]) -> None:
    for each in optimizers:
        each.step()


def compiled(function: Any) -> Any:
    """Instead of compiling for a GPU: the same uncompiled."""

    def call(*args: Any, **named: Any) -> Any:
        if function is flex.flex_attention:
            q_BHTK, v_BGTV = args[0], args[2]
            ATTENDED.append(q_BHTK.device.type)
            if isinstance(_get_current_dispatch_mode(), Awake):  # It knows no modes.
                return q_BHTK.new_empty(*q_BHTK.shape[:-1], v_BGTV.shape[-1])
        return function(*args, **named)

    return call


if __name__ == "__main__":
    _, library, device = sys.argv
    ctypes.CDLL(library)
    flex._ready, flex._compiled = (lambda: True), compiled
    torch.cuda.is_bf16_supported = lambda including_emulation: True
    full = AdapterConfig()
    for name, changes in DECODERS.items():
        step(device, name, changes, full, "lion")
        print(name)
    assert set(ATTENDED) == ({"cuda"} if device == "cuda" else set())
    for name in OPTIMIZERS:
        step(device, name, {"dim": 128}, full, name)
        print(name)
    for adapter in ADAPTERS:
        step(device, adapter.method, {}, adapter, "adamw")
        print(adapter.method, adapter.base)
