"""FSDP2: processes that each keep a part of every weight, gradient and optimiser state.

A block's weights are gathered for its forward and backward pass and let go after each. The loop, the objectives and the
checkpoints see the same names and shapes as without; a checkpoint holds whole tensors, so that any number of processes
continues it. Source: Zhao et al. 2023, "PyTorch FSDP", and torch's `fully_shard`.
"""

import copy

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from wenfang.model import Decoder


def sharded(model: Decoder, dtype: torch.dtype, *, compiled: bool) -> Decoder:
    """A copy of `model` whose weights lie in parts on all processes of the job; `model` itself lets go of its own until
    `fill` brings them back.

    Args:
        model: the same in every process, on the device it is trained on.
        dtype: arithmetic of the activations, in which weights are gathered. They rest and are summed in fp32.
        compiled: whether each block runs through torch.compile.
    """
    parts = copy.deepcopy(model)
    for weight in model.parameters():
        weight.data = weight.new_empty(0)
    mesh = init_device_mesh(parts.embed_tokens.weight.device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    # Experts' losses and RWKV-7's first values leave a block beside its output, so that gradients may come back before
    # the block knows of it: its weights stay gathered until then.
    beside = model.config.moe is not None or "rwkv7" in model.config.mixers
    for block in parts.layers:
        if compiled:
            block.compile(dynamic=False)
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=not beside)
    fully_shard(parts, mesh=mesh, mp_policy=policy)
    register_fsdp_forward_method(parts, "hidden")
    for module in parts.modules():
        if isinstance(module, FSDPModule):  # Sums, as losses are divided by the tokens of all processes.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return parts


@torch.no_grad()
def fill(model: nn.Module, parts: nn.Module) -> None:
    """Give `model` the whole weights and buffers of its sharded copy; every process takes part."""
    for weight, part in zip(model.parameters(), parts.parameters(), strict=True):
        weight.data = whole(part.detach())
    for buffer, its_copy in zip(model.buffers(), parts.buffers(), strict=True):
        buffer.copy_(its_copy)


def rest(parts: nn.Module) -> None:
    """Let go of weights still gathered, after a forward pass that none backward follows."""
    for module in parts.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may lie in parts; every process takes part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, value: Tensor) -> Tensor:
    """A whole `value`, which every process has, in parts as `tensor` is; on its device in any case."""
    value = value.to(tensor.device)
    if not isinstance(tensor, DTensor) or value.shape != tensor.shape:
        return value
    return distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None)
