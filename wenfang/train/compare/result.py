"""What became of one architecture."""

from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Point:
    """One measurement on the validation data while training."""

    tokens: int
    flops: float
    seconds: float
    bits_per_byte: float


@dataclass(frozen=True)
class Result:
    """Everything known about one variant."""

    name: str
    parameters: int
    active_parameters: int
    flops_per_token: float
    """Of training."""
    bits_per_byte: float
    """On the validation data, after the last step."""
    curve: list[Point]
    training_bytes: int
    """Forecast: weights, optimiser and activations of one step, the process left out."""
    cache_bytes: int
    """Forecast: what one sequence of the training context keeps, in bf16."""
    decode_tokens_per_s: float
    """Measured, one sequence, fp32."""
    lengths: dict[str, float]
    """Bits per byte in the second half of rows by length relative to training; empty where not asked for."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """What `dataclasses.asdict` made into a dictionary."""
        return cls(**values | {"curve": [Point(**point) for point in values["curve"]]})

    @property
    def seconds(self) -> float:
        """Training time."""
        return self.curve[-1].seconds
