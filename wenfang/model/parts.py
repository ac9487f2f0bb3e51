"""The nested parts of a decoder's config: rotary embedding, latent attention, mixture of experts, retrieval."""

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BeforeValidator, Field, model_validator

from wenfang.core.config import Config

T = TypeVar("T")
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]


def _as_pattern(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


Pattern = Annotated[tuple[T, ...], BeforeValidator(_as_pattern), Field(min_length=1)]
"""One value per layer, repeated over the layers; a single value stands for every layer."""


class LinearScaling(Config):
    """Positions divided by `factor` (Chen et al. 2023, position interpolation)."""

    type: Literal["linear"] = "linear"
    factor: Positive


class DynamicScaling(Config):
    """NTK-aware: the base grows with the longest position of the call (bloc97 and emozilla 2023). Keys in a cache
    keep the base they were written with, as in `transformers`."""

    type: Literal["dynamic"] = "dynamic"
    factor: Positive
    original_context: Count
    """Context of pretraining; nothing changes up to here."""


class Llama3Scaling(Config):
    """Long wavelengths divided by `factor`, short ones kept, smooth between (Llama 3.1, Dubey et al. 2024)."""

    type: Literal["llama3"] = "llama3"
    factor: Positive
    low_freq_factor: Positive = 1.0
    high_freq_factor: Positive = 4.0
    original_context: Count


class YarnScaling(Config):
    """Interpolation by wavelength and a temperature on attention (YaRN, Peng et al. 2023)."""

    type: Literal["yarn"] = "yarn"
    factor: Positive
    original_context: Count
    beta_fast: Positive = 32.0
    """Rotations within the original context above which a channel is not interpolated."""
    beta_slow: Positive = 1.0
    """Rotations below which a channel is interpolated fully."""
    attention_factor: Positive | None = None
    """Factor on queries and keys; None for the paper's 0.1 · ln(factor) + 1."""
    truncate: bool = True
    """Round the borders between the two kinds of channels to whole channels."""


class LongRopeScaling(Config):
    """A factor per channel, one set for calls within the original context and one beyond (Ding et al. 2024)."""

    type: Literal["longrope"] = "longrope"
    short_factor: tuple[Positive, ...]
    long_factor: tuple[Positive, ...]
    original_context: Count
    attention_factor: Positive
    """Factor on queries and keys."""


Scaling = Annotated[
    LinearScaling | DynamicScaling | Llama3Scaling | YarnScaling | LongRopeScaling, Field(discriminator="type")
]


class RopeConfig(Config):
    """Rotary position embedding (Su et al. 2021)."""

    theta: Positive = 10_000.0
    """Base wavelength."""
    fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of a head's channels that are rotated, the first ones."""
    scaling: Scaling | None = None
    """How a model trained on a short context reads a longer one."""


class MlaConfig(Config):
    """Multi-head latent attention (DeepSeek-V2 2024): keys and values are small projections of one latent vector,
    and only that vector and one rotated key are cached. `head_dim` is the width of queries and keys, rotated
    channels included."""

    kv_rank: Count
    """Width of the latent vector."""
    query_rank: Count | None = None
    """Width of the queries' own latent vector; None for a full projection."""
    rope_dim: int = Field(gt=0, multiple_of=2)
    """Rotated channels of each query, and of the one key that all heads share."""
    value_dim: Count
    """Width of each head's values."""
    norm_eps: Positive = 1e-6
    """Of the norms on the latent vectors."""


class MoeConfig(Config):
    """Mixture of experts (Shazeer et al. 2017; DeepSeekMoE, Dai et al. 2024)."""

    experts: Count
    active: Count
    """Experts that each token goes to."""
    hidden: Count
    """Width inside each expert."""
    layers: Pattern[bool] = (True,)
    """Which layers have experts; the others keep a dense feed-forward of width `DecoderConfig.hidden`."""
    shared_hidden: int = Field(default=0, ge=0)
    """Width of the expert that every token goes to; 0 for none."""
    shared_gate: bool = False
    """Scale the shared expert's output by a sigmoid gate (Qwen2-MoE)."""
    scores: Literal["softmax", "sigmoid"] = "softmax"
    normalise: bool = True
    """Scale the chosen experts' weights to sum 1."""
    scale: Positive = 1.0
    """Factor on the chosen experts' weights."""
    groups: Count = 1
    """Groups of experts, of which only `active_groups` compete: those with the best expert (softmax) or the best
    sum of two (sigmoid) (DeepSeek-V2, V3)."""
    active_groups: Count = 1
    balance: Literal["bias", "loss"] | None = None
    """How training keeps the experts equally busy: a bias on the choice that is moved after each step (Wang et al.
    2024), or an additional loss (Switch Transformer, Fedus et al. 2021)."""
    balance_rate: Positive = 0.001
    """Step of the bias, or weight of the loss."""
    capacity: Positive | None = None
    """Tokens an expert takes in one call, as a multiple of its even share; what comes later is dropped. None to drop
    nothing."""

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        if self.experts % self.groups:
            raise ValueError(f"experts ({self.experts}) must be a multiple of groups ({self.groups})")
        if self.active_groups > self.groups:
            raise ValueError(f"active_groups ({self.active_groups}) must not exceed groups ({self.groups})")
        available = self.experts // self.groups * self.active_groups
        if self.active > available:
            raise ValueError(f"active ({self.active}) must not exceed the experts it may choose from ({available})")
        return self


class RetroConfig(Config):
    """Chunked cross-attention over neighbours (RETRO, Borgeaud et al. 2022)."""

    chunk: int = Field(default=16, gt=1)
    """Tokens that neighbours are looked up for together; a neighbour is a chunk and the one that follows it."""
    neighbours: Count = 2
    """Neighbours of each chunk."""
    layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(1,), min_length=1)
    """Layers with cross-attention, counted from 0, rising."""
    encoder_layers: Count = 1
    """Bidirectional layers over the neighbours; the first also reads the chunk they were found for."""

    @property
    def shape(self) -> tuple[int, int]:
        """Neighbours of a chunk, tokens of each."""
        return self.neighbours, 2 * self.chunk

    @model_validator(mode="after")
    def _check_layers(self) -> Self:
        if list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"retro.layers ({list(self.layers)}) must rise")
        return self
