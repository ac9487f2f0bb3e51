"""Activation checkpointing: memory for time."""

from functools import partial

from torch.utils.checkpoint import checkpoint

from wenfang.core.errors import InputError
from wenfang.core.language import say
from wenfang.model import Decoder


def recompute_blocks(model: Decoder) -> None:
    """Keep only each block's input, and compute what its backward pass needs once more (Chen et al. 2016).

    Raises:
        InputError: the model has RWKV-7 layers, whose first one leaves values to the others.
    """
    if "rwkv7" in model.config.mixers:
        raise InputError(
            say(
                zh="recompute 不能用於 RWKV-7：第一層把值留給其他層。請拿掉。",
                en="recompute does not go with RWKV-7, whose first layer leaves values to the others. Leave it out.",
            )
        )
    for block in model.layers:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
