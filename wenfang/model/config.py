"""The typed shape of a decoder."""

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BeforeValidator, Field, model_validator

from wenfang.core.config import Config

T = TypeVar("T")


def _as_pattern(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


Pattern = Annotated[tuple[T, ...], BeforeValidator(_as_pattern), Field(min_length=1)]
"""One value per layer, repeated over the layers; a single value stands for every layer."""

Mixer = Literal["attention", "mamba2", "gated_deltanet", "rwkv7", "ttt"]


class RopeConfig(Config):
    """Rotary position embedding (Su et al. 2021)."""

    theta: float = Field(default=10_000.0, gt=0)
    """Base wavelength."""


class DecoderConfig(Config):
    """Shape of a decoder-only language model. Each idea is a field; the defaults make a small Qwen3.

    Sources: Llama 2 (Touvron et al. 2023), GQA (Ainslie et al. 2023), QK-norm as in Qwen3 (2025).
    """

    vocab_size: int = Field(gt=0)
    """Rows of the embedding table."""
    dim: int = Field(default=256, gt=0)
    """Width of the residual stream."""
    layers: int = Field(default=6, gt=0)
    heads: int = Field(default=4, gt=0)
    """Query heads."""
    kv_heads: int = Field(default=2, gt=0)
    """Key/value heads; divides `heads`."""
    head_dim: int = Field(default=64, gt=0, multiple_of=2)
    hidden: int = Field(default=768, gt=0)
    """Width inside the SwiGLU feed-forward."""
    context: int = Field(default=256, gt=0)
    """Longest sequence in tokens."""
    norm_eps: float = Field(default=1e-6, gt=0)
    qk_norm: bool = True
    """RMS-normalise queries and keys per head before RoPE."""
    tie_embeddings: bool = False
    """Use the embedding table as the output projection."""

    mixers: Pattern[Mixer] = ("attention",)
    """What carries information between positions, by layer."""
    ropes: Pattern[RopeConfig | None] = (RopeConfig(),)
    """Rotary position embedding of the attention layers; None for none."""
    windows: Pattern[Annotated[int, Field(gt=0)] | None] = (None,)
    """Sliding window in tokens, the query's own position included; None to see everything before."""
    attention_scale: float | None = Field(default=None, gt=0)
    """Factor on q·k; None for 1/√head_dim."""
    attention_softcap: float | None = Field(default=None, gt=0)
    """Bound the scores softly: cap · tanh(score / cap) (Gemma 2)."""

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        return self

    def mixer(self, layer: int) -> Mixer:
        """The sequence mixer of a layer."""
        return self.mixers[layer % len(self.mixers)]

    def rope(self, layer: int) -> RopeConfig | None:
        """The rotary embedding of a layer."""
        return self.ropes[layer % len(self.ropes)]

    def window(self, layer: int) -> int | None:
        """The sliding window of a layer."""
        return self.windows[layer % len(self.windows)]

    @property
    def matmul_parameters(self) -> int:
        """Weights that take part in a matrix product for each token (embedding look-up excluded)."""
        attention = self.dim * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.dim * self.hidden) + self.dim * self.vocab_size

    @property
    def parameters(self) -> int:
        """All trainable weights."""
        norms = self.layers * (2 * self.dim + 2 * self.head_dim * self.qk_norm) + self.dim
        return self.matmul_parameters + norms + (0 if self.tie_embeddings else self.dim * self.vocab_size)

    def training_flops(self, tokens: int, sequence: int) -> float:
        """Floating-point operations to train on `tokens` in rows of `sequence`: 6 per weight and token plus
        causal attention (PaLM, Chowdhery et al. 2022, appendix B, halved for the causal mask)."""
        attention = 6 * self.layers * self.heads * self.head_dim * sequence
        return float(tokens) * (6 * self.matmul_parameters + attention)
