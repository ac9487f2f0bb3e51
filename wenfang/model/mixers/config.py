"""The typed shapes of the recurrent mixers."""

from typing import Self

from pydantic import Field, model_validator

from wenfang.core.config import Config


class Mamba2Config(Config):
    """Shape of a Mamba-2 layer (Dao & Gu 2024)."""

    heads: int = Field(default=8, gt=0)
    """Heads of the state-space model; heads · head_dim is the inner width."""
    head_dim: int = Field(default=64, gt=0)
    state_dim: int = Field(default=64, gt=0)
    """Numbers kept per channel (N in the paper)."""
    groups: int = Field(default=1, gt=0)
    """Heads of one group share B, C and the output norm; divides `heads`."""
    conv_width: int = Field(default=4, gt=1)
    """Positions under the causal convolution."""
    conv_bias: bool = True
    chunk: int = Field(default=64, gt=0)
    """Positions computed as one block in the parallel form; changes the speed, not the result."""

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        if self.heads % self.groups:
            raise ValueError(f"heads ({self.heads}) must be a multiple of groups ({self.groups})")
        return self


class GatedDeltaNetConfig(Config):
    """Shape of a gated DeltaNet layer (Yang, Kautz & Hatamizadeh 2024)."""

    key_heads: int = Field(default=4, gt=0)
    """Query/key heads; divides `value_heads`."""
    value_heads: int = Field(default=4, gt=0)
    key_dim: int = Field(default=64, gt=0)
    """Width of a query/key head."""
    value_dim: int = Field(default=64, gt=0)
    """Width of a value head."""
    conv_width: int = Field(default=4, gt=1)
    """Positions under the causal convolution."""
    chunk: int = Field(default=64, gt=0)
    """Positions computed as one block in the parallel form; changes the speed, not the result."""

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.value_heads % self.key_heads:
            raise ValueError(f"value_heads ({self.value_heads}) must be a multiple of key_heads ({self.key_heads})")
        return self


class Rwkv7Config(Config):
    """Shape of an RWKV-7 time mix (Peng et al. 2025)."""

    heads: int = Field(default=4, gt=0)
    head_dim: int = Field(default=64, gt=0)
    """Width of a head; heads · head_dim is the inner width."""
    decay_rank: int = Field(default=32, gt=0)
    """Inner width of the low-rank map that makes the decay."""
    rate_rank: int = Field(default=32, gt=0)
    """The same for the in-context learning rate (`a` in the paper)."""
    value_rank: int = Field(default=32, gt=0)
    """The same for the share of the first layer's values."""
    gate_rank: int = Field(default=64, gt=0)
    """The same for the output gate."""
    norm_eps: float = Field(default=64e-5, gt=0)
    """Added to the variance of each head's output."""
    chunk: int = Field(default=32, gt=0, le=128)
    """Positions computed as one block in the parallel form; changes the speed, not the result. The decay across a
    block is at least exp(−0.607 · chunk), whose inverse must fit fp32."""


class TttConfig(Config):
    """Shape of a TTT-Linear layer (Sun et al. 2024)."""

    heads: int = Field(default=4, gt=0)
    head_dim: int = Field(default=64, gt=0, multiple_of=2)
    """Width of a head and of its linear inner model."""
    mini_batch: int = Field(default=16, gt=0)
    """Positions whose gradients are taken at the same inner weights (b in the paper)."""
    learning_rate: float = Field(default=1.0, gt=0)
    """Base rate of the inner gradient step; each position scales it by its own sigmoid gate / head_dim."""
    rope_theta: float = Field(default=10_000.0, gt=0)
    """Rotary base of queries and keys, whose positions count within the mini-batch."""
