"""The typed shape of a decoder."""

from typing import Self

from pydantic import Field, model_validator

from wenfang.core.config import Config


class DecoderConfig(Config):
    """Shape of a decoder-only Transformer: RoPE, RMSNorm, SwiGLU, grouped-query attention.

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
    rope_theta: float = Field(default=10_000.0, gt=0)
    norm_eps: float = Field(default=1e-6, gt=0)
    qk_norm: bool = True
    """RMS-normalise queries and keys per head before RoPE."""
    tie_embeddings: bool = False
    """Use the embedding table as the output projection."""

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        return self

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
