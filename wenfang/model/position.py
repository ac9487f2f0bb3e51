"""Where a token stands: rotary position embedding.

Shapes in names: B batch, T time, H heads, K rotated width of a head.
"""

import torch
from torch import Tensor

from wenfang.model.config import RopeConfig

Rotation = tuple[Tensor, Tensor]
"""cos_B1TK and sin_B1TK of the angles of each position."""


def rotation(rope: RopeConfig, width: int, positions_BT: Tensor, dtype: torch.dtype) -> Rotation:
    """The angles' cosines and sines for heads of `width` channels, computed in fp32."""
    exponents = torch.arange(0, width, 2, device=positions_BT.device) / width
    angles = positions_BT[:, None, :, None].float() * rope.theta**-exponents
    angles_B1TK = torch.cat((angles, angles), dim=-1)
    return angles_B1TK.cos().to(dtype), angles_B1TK.sin().to(dtype)


def rotate(x_BHTK: Tensor, rotation: Rotation) -> Tensor:
    """Rotary position embedding in the half-split layout of Hugging Face (Su et al. 2021)."""
    cos_B1TK, sin_B1TK = rotation
    first, second = x_BHTK.chunk(2, dim=-1)
    rotated = torch.cat((-second, first), dim=-1)
    return x_BHTK * cos_B1TK + rotated * sin_B1TK
