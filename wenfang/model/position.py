"""Where a token stands: rotary embedding and its scalings, ALiBi slopes, sinusoids.

Shapes in names: B batch, T time, H heads, K rotated width of a head, F = K/2 frequencies, D model width.
"""

import math

import torch
from torch import Tensor

from wenfang.model.parts import DynamicScaling, Llama3Scaling, LongRopeScaling, RopeConfig, YarnScaling

Rotation = tuple[Tensor, Tensor]
"""cos_B1TF and sin_B1TF of the angles of each position."""


def rotation(rope: RopeConfig, width: int, positions_BT: Tensor, dtype: torch.dtype) -> Rotation:
    """The angles' cosines and sines for `width` rotated channels, computed in fp32."""
    per_position, factor = frequencies(rope, width, positions_BT)
    return _tables(positions_BT[:, None, :, None].float() * per_position, factor, dtype)


# An operator of its own, since compilation would otherwise compute a power, a cosine and a sine anew for every number
# that is rotated, in every layer, forward and backward (docs/log.md, 2026-11-26).
@torch.library.custom_op("wenfang::rotation_tables", mutates_args=())
def _tables(angles_B1TF: Tensor, factor: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return (angles_B1TF.cos() * factor).to(dtype), (angles_B1TF.sin() * factor).to(dtype)


@_tables.register_fake
def _(angles_B1TF: Tensor, factor: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.empty_like(angles_B1TF, dtype=dtype), torch.empty_like(angles_B1TF, dtype=dtype)


def rotate(x_BHTK: Tensor, rotation: Rotation) -> Tensor:
    """Rotary position embedding in the half-split layout of Hugging Face (Su et al. 2021). Where the heads are wider
    than the rotation, their last channels stay as they are."""
    # In the order of memory: a compiled step would make gradients in the order of dimensions, and copy them.
    x_BTHK, cos_BT1F, sin_BT1F = (x.transpose(1, 2) for x in (x_BHTK, *rotation))
    width = 2 * cos_BT1F.shape[-1]
    turned, kept = (x_BTHK, None) if width == x_BTHK.shape[-1] else (x_BTHK[..., :width], x_BTHK[..., width:])
    first, second = turned.chunk(2, dim=-1)
    turned = torch.cat((first * cos_BT1F - second * sin_BT1F, second * cos_BT1F + first * sin_BT1F), dim=-1)
    return (turned if kept is None else torch.cat((turned, kept), dim=-1)).transpose(1, 2)


def frequencies(rope: RopeConfig, width: int, positions_BT: Tensor) -> tuple[Tensor, float]:
    """Radians per position for each pair of channels, [F] or [B, 1, 1, F], and the factor on cosine and sine."""
    exponents_F = torch.arange(0, width, 2, device=positions_BT.device) / width
    plain_F = 1.0 / rope.theta**exponents_F
    scaling = rope.scaling
    if scaling is None:
        return plain_F, 1.0
    if scaling.type == "linear":
        return plain_F / scaling.factor, 1.0
    if scaling.type == "llama3":
        return _llama3(scaling, plain_F), 1.0
    if scaling.type == "yarn":
        factor = scaling.attention_factor or (0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0)
        return _yarn(scaling, rope.theta, plain_F), factor
    # Per row, not per batch: a sequence must not read differently beside a longer one.
    longest_B111 = positions_BT.amax(1)[:, None, None, None] + 1
    if scaling.type == "dynamic":
        return _dynamic(scaling, rope.theta, exponents_F, longest_B111), 1.0
    return _longrope(scaling, plain_F, longest_B111), scaling.attention_factor


def _llama3(scaling: Llama3Scaling, plain_F: Tensor) -> Tensor:
    rotations_F = scaling.original_context * plain_F / (2 * math.pi)  # Turns within the original context.
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept_F = ((rotations_F - low) / (high - low)).clamp(0, 1)
    return plain_F * (kept_F + (1 - kept_F) / scaling.factor)


def _yarn(scaling: YarnScaling, theta: float, plain_F: Tensor) -> Tensor:
    width = 2 * len(plain_F)

    def channel(rotations: float) -> float:
        """The channel that turns so often within the original context."""
        return width * math.log(scaling.original_context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = channel(scaling.beta_fast), channel(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    ramp_F = (torch.arange(len(plain_F), device=plain_F.device) - low) / (high - low or 0.001)
    interpolated_F = ramp_F.clamp(0, 1)
    return plain_F * (1 - interpolated_F + interpolated_F / scaling.factor)


def _dynamic(scaling: DynamicScaling, theta: float, exponents_F: Tensor, longest_B111: Tensor) -> Tensor:
    width = 2 * len(exponents_F)
    length = longest_B111.clamp(min=scaling.original_context) / scaling.original_context
    base_B111 = theta * (scaling.factor * length - (scaling.factor - 1)) ** (width / (width - 2))
    return 1.0 / base_B111**exponents_F


def _longrope(scaling: LongRopeScaling, plain_F: Tensor, longest_B111: Tensor) -> Tensor:
    short_F, long_F = plain_F.new_tensor(scaling.short_factor), plain_F.new_tensor(scaling.long_factor)
    return plain_F / torch.where(longest_B111 > scaling.original_context, long_F, short_F)


def alibi_slopes(heads: int) -> tuple[float, ...]:
    """2^(−8/n), 2^(−16/n), … for n heads; where n is no power of two, every second slope of the next one fills up
    (Press et al. 2022, their reference code)."""
    power = 2 ** math.ceil(math.log2(heads))
    slopes = [2 ** (-8 * (head + 1) / power) for head in range(power)]
    return tuple(slopes if power == heads else (slopes[1::2] + slopes[::2])[:heads])


def sinusoids(positions_BT: Tensor, dim: int) -> Tensor:
    """sin and cos by turns, wavelengths from 2π to 20000π, [B, T, D] (Vaswani et al. 2017, section 3.5)."""
    exponents = torch.arange(0, dim, 2, device=positions_BT.device) / dim
    angles = positions_BT[..., None].float() / 10_000.0**exponents
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)[..., :dim]
