"""Typed options of the training stages."""

from typing import Literal, Self

from pydantic import Field, model_validator

from wenfang.core.config import Config, Conversations, Corpus, ModelFolder, TokenizerFolder


class OptimizerConfig(Config):
    """Muon for the matrices inside the blocks, AdamW for embeddings, head and norms."""

    lr: float = Field(default=0.008, gt=0)
    """Peak learning rate of both: Muon's updates are scaled to the size of AdamW's."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of the matrices."""
    warmup: float = Field(default=0.02, ge=0, le=1)
    """Share of the steps over which the learning rate rises from zero."""
    decay: float = Field(default=0.6, ge=0, le=1)
    """Share of the steps, at the end, over which it falls linearly to zero."""
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient; larger ones are scaled down."""


class TrainConfig(Config):
    """What every training stage asks for."""

    steps: int = Field(gt=0)
    """Optimiser steps; the main dial."""
    batch: int = Field(default=64, gt=0)
    """Rows per step."""
    context: int = Field(default=128, gt=1)
    """Tokens per row; documents are packed into rows and never see each other."""
    optimizer: OptimizerConfig = OptimizerConfig()
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Arithmetic of activations; auto means bfloat16 where the processor multiplies it natively."""
    compile: bool = True
    """Compile the step with torch.compile; without a C++ compiler it runs eagerly, with a notice."""
    save_as: Literal["float32", "bfloat16"] = "float32"
    """Number format of the written weights; bfloat16 halves the file, float32 is the better start for more training."""
    validate_every: int = Field(default=100, gt=0)
    """Steps between two measurements on the validation split."""
    checkpoint_every_s: float = Field(default=30, gt=0)
    """Seconds between two checkpoints; a killed run loses at most this much work."""
    seed: int = 0


class PretrainConfig(TrainConfig):
    """Train a decoder from scratch on a corpus."""

    corpus: Corpus
    tokenizer: TokenizerFolder
    dim: int = Field(default=256, gt=0)
    """Width of the residual stream."""
    layers: int = Field(default=4, gt=0)
    heads: int = Field(default=4, gt=0)
    kv_heads: int = Field(default=2, gt=0)
    """Key/value heads; divides `heads`."""
    head_dim: int = Field(default=64, gt=0, multiple_of=2)
    hidden: int = Field(default=704, gt=0)
    """Width inside the SwiGLU feed-forward."""
    tie_embeddings: bool = False
    """Use the embedding table as the output projection."""

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        return self


class SftConfig(TrainConfig):
    """Teach a model to answer: only the assistant's tokens enter the loss."""

    conversations: Conversations
    model: ModelFolder
    too_long: Literal["error", "truncate", "drop"] = "error"
    """What to do with a conversation longer than the context."""
