"""A decoder whose projections rest in few bits, for generation on the CPU."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from wenfang.core.errors import ModelError
from wenfang.core.language import say
from wenfang.model.config import DecoderConfig
from wenfang.model.decoder import Decoder
from wenfang.model.folder import open_model
from wenfang.model.linear import Linear
from wenfang.native.pages import LargePages
from wenfang.native.quantized import (
    MOST_INPUTS,
    Bits,
    PackedWeight,
    linear,
    look_up,
    pack,
    packed_bytes,
    rounding_loss,
    unpack,
)

Quantization = Literal["int8", "int4"]
_BITS: dict[Quantization, Bits] = {"int8": 8, "int4": 6}
_ROBUST_BITS: dict[Quantization, Bits] = {"int8": 8, "int4": 4}
_ROBUST = ("q_proj", "o_proj")
"""Projections of which small models lose little to four bits (docs/log.md, 2026-11-27)."""
_LOSSLESS = 0.02
"""A weight that loses less than this share of itself to four bits had no more before: others lose some 0.08."""


class QuantizedLinear(nn.Module):
    """x · Wᵀ + b with W in eight or six bits and a scale per 32 inputs, or in four with scale and minimum.

    Args:
        base: the projection in floating point, which is not kept.
        bits: of a weight.
        room: where the codes and scales go.
    """

    codes: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, base: Linear, bits: Bits, room: LargePages) -> None:
        super().__init__()
        packed = pack(base.weight, bits, room)
        self.bits, self.in_features, self.out_features = packed.bits, packed.inputs, packed.outputs
        self.register_buffer("codes", packed.codes)
        self.register_buffer("scales", packed.scales)
        self.register_buffer("bias", None if base.bias is None else base.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        y = linear(x, self.packed)
        return y if self.bias is None else y + self.bias.to(x.dtype)

    @property
    def weight(self) -> Tensor:
        """The weight_OI in fp32 that the codes stand for, made anew."""
        return unpack(self.packed)

    @property
    def packed(self) -> PackedWeight:
        """Codes and scales as the kernels read them."""
        return PackedWeight(self.bits, self.out_features, self.in_features, self.codes, self.scales)


class QuantizedEmbedding(nn.Module):
    """Tokens looked up in an output projection that is tied to their table, of which no other copy is kept.

    Args:
        table: the projection's weight.
    """

    def __init__(self, table: PackedWeight) -> None:
        super().__init__()
        self.table = table

    def forward(self, ids: Tensor) -> Tensor:
        """The tokens' fp32 rows, one more dimension than `ids`."""
        return look_up(self.table, ids)


def bits_of(projection: str, quantization: Quantization) -> Bits:
    """The most bits that a weight of this projection gets, by its name: fewer for those that suffer least."""
    return (_ROBUST_BITS if projection.endswith(_ROBUST) else _BITS)[quantization]


def quantize(model: Decoder, quantization: Quantization) -> Decoder:
    """Replace every projection of `model` in place; the rest becomes bf16. A tied table is looked up in the projection.

    Raises:
        ModelError: the model has experts, latent attention or recurrent layers, whose weights are not all projections.
    """
    names = [name for name, _ in model.named_parameters()]
    return _quantize(model, ((name, model.get_parameter(name)) for name in names), quantization)


def load_quantized(path: Path, quantization: Quantization) -> Decoder:
    """Open a model folder or GGUF file and quantise it, one weight after the other.

    Raises:
        InputError, ModelError: as `load_model` and `quantize`.
    """
    return _quantize(*open_model(path, dtype=torch.bfloat16), quantization)


@torch.no_grad()
def _quantize(model: Decoder, tensors: Iterable[tuple[str, Tensor]], quantization: Quantization) -> Decoder:
    """Give the decoder its tensors, rounded one by one, so that few are in memory in two forms."""
    check_quantizable(model.config)
    projections = {name: module for name, module in model.named_modules() if isinstance(module, Linear)}
    sizes = [
        packed_bytes(module.out_features, module.in_features, bits_of(name, quantization))
        for name, module in projections.items()
    ]
    # Room for all is made first: packed elsewhere and then moved, they would be in memory twice.
    room = LargePages([size for pair in sizes for size in pair])
    tied = model.config.tie_embeddings
    waiting = {name: {part for part, _ in module.named_parameters()} for name, module in projections.items()}
    for name, tensor in tensors:
        owner, _, part = ("lm_head.weight" if tied and name == "embed_tokens.weight" else name).rpartition(".")
        # A copy lets go of the file that it is mapped from.
        weight = nn.Parameter(tensor.to(torch.bfloat16, copy=owner not in projections), requires_grad=False)
        setattr(model.get_submodule(owner), part, weight)
        if owner in projections:
            waiting[owner].remove(part)
            if not waiting[owner]:
                projection = projections.pop(owner)
                bits = bits_of(owner, quantization)
                # A file may hold weights that four bits hold as well.
                if bits == 6 and rounding_loss(projection.weight, 4) < _LOSSLESS:
                    bits = 4
                model.set_submodule(owner, QuantizedLinear(projection, bits, room))
    if tied:
        assert isinstance(model.lm_head, QuantizedLinear)
        model.set_submodule("embed_tokens", QuantizedEmbedding(model.lm_head.packed))
    return model


def check_quantizable(config: DecoderConfig) -> None:
    """Refuse what `quantize` cannot hold, before any weight is read.

    Raises:
        ModelError: as `quantize`.
    """
    parts = {
        say(zh="專家混合", en="experts"): config.moe is not None,
        say(zh="潛在注意力", en="latent attention"): config.mla is not None,
        say(zh="遞迴層", en="recurrent layers"): config.token_shift or len(config.attention_layers) < config.layers,
        say(zh="過寬的投影", en="projections too wide"): max(config.hidden, config.dim) > MOST_INPUTS,
    }
    if found := [part for part, there in parts.items() if there]:
        named = say(zh="、", en=", ").join(found)
        raise ModelError(
            say(
                zh=f"這個模型有{named}，還不能量化。請不用 `quantize` 開啟。",
                en=f"This model has {named} and cannot be quantised yet. Open it without `quantize`.",
            )
        )
