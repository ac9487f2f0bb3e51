"""Typed options of the training stages."""

from typing import Literal, Self

from pydantic import Field, model_validator

from wenfang.core.config import ChunkIndex, Config, Conversations, Corpus, ModelFolder, Source, TokenizerFolder


class OptimizerConfig(Config):
    """How weights move."""

    name: Literal["muon", "adamw", "adam8bit", "lion", "galore"] = "muon"
    """muon and galore: they move the matrices inside the blocks, AdamW the rest and adapters; the others move all."""
    lr: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Peak learning rate; not given, 0.008 for muon and galore, 0.002 for adamw and adam8bit, 0.0004 for lion."""
    schedule: Literal["wsd", "linear", "cosine", "constant"] = "wsd"
    """After the warm-up: wsd holds the peak and falls linearly at the end, linear and cosine fall all the way."""
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Decoupled weight decay of the matrices inside the blocks."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Each layer learns at this share of the rate of the one above it."""
    warmup: float = Field(default=0.02, ge=0, le=1)
    """Share of the steps over which the learning rate rises from zero."""
    decay: float = Field(default=0.6, ge=0, le=1)
    """wsd: share of the steps, at the end, over which it falls."""
    floor: float = Field(default=0.0, ge=0, le=1)
    """Share of the peak at which it ends."""
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient; larger ones are scaled down."""
    galore_rank: int = Field(default=64, gt=0)
    """galore: dimensions that gradients are projected to."""
    galore_refresh: int = Field(default=200, gt=0)
    """galore: steps between two choices of those dimensions."""
    galore_scale: float = Field(default=0.25, gt=0)
    """galore: its updates are multiplied by this."""


class TrainConfig(Config):
    """What every training stage asks for."""

    steps: int = Field(gt=0)
    """Optimiser steps; the main dial."""
    batch: int = Field(default=64, gt=0)
    """Rows per forward pass."""
    accumulate: int = Field(default=1, gt=0)
    """Batches per step: exactly a batch this many times larger, in the memory of one."""
    context: int = Field(default=128, gt=1)
    """Tokens per row; documents are packed into rows and never see each other."""
    optimizer: OptimizerConfig = OptimizerConfig()
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target's probability spread over the whole vocabulary while training."""
    z_loss: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Weight of the squared logarithm of the softmax's normaliser, which keeps logits small."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of each block's output that is left out at random while training."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Arithmetic of activations; auto means bfloat16 where the hardware multiplies it natively."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where it is computed; auto takes a GPU where there is one."""
    compile: bool = True
    """Compile the step with torch.compile; without a compiler it runs eagerly, with a notice."""
    recompute: bool = False
    """Compute each block's activations again on the way back: less memory, about a third more time."""
    shard: bool = False
    """Each process keeps a part of weights, gradients and optimiser states (FSDP2); not for adam8bit."""
    save_as: Literal["float32", "bfloat16"] = "float32"
    """Number format of the written weights; bfloat16 halves the file, float32 is the better start for more training."""
    validate_every: int = Field(default=100, gt=0)
    """Steps between two measurements on the validation split."""
    patience: int = Field(default=0, ge=0)
    """Stop after this many measurements without improvement, and write the best weights; 0 trains to the end."""
    checkpoint_every_s: float = Field(default=30, gt=0)
    """Seconds between two checkpoints; a killed run loses at most this much work."""
    keep_checkpoints: int = Field(default=2, gt=0)
    """Newest checkpoints to keep while training, beside the best; all are removed when the output is whole."""
    bad_step: Literal["stop", "skip"] = "stop"
    """What to do when a loss or gradient is not a number or spikes; the batch is kept in `bad_steps/` either way."""
    spike: float | None = Field(default=None, gt=1)
    """Call a loss a spike when it exceeds this many times the median of the last 50; not given, none is."""
    seed: int = 0
    """Decides the initial weights, the order of rows and what dropout leaves out."""

    @model_validator(mode="after")
    def _check_shard(self) -> Self:
        if self.shard and self.optimizer.name == "adam8bit":
            raise ValueError("optimizer.name='adam8bit' cannot be sharded; use adamw, muon, lion or galore")
        return self


class RetrievalConfig(Config):
    """What is done with neighbours found in an index: retro is Borgeaud et al. 2022, realm Guu et al. 2020."""

    method: Literal["retro", "realm"] = "retro"
    """retro: layers of the decoder attend to them. realm: they stand before the text; which to trust is learnt, too."""
    neighbours: int = Field(default=2, gt=0)
    """Chunks found for each chunk of the text; each brings the one that follows it."""
    layers: tuple[int, ...] = Field(default=(1,), min_length=1)
    """retro: layers that attend to them, counted from 0, rising."""
    encoder_layers: int = Field(default=1, gt=0)
    """retro: layers of the encoder that reads them."""


class PretrainConfig(TrainConfig):
    """Train a decoder on a corpus: a fresh one, or one that exists already."""

    corpus: Corpus
    """The corpus to learn from."""
    tokenizer: TokenizerFolder | None = None
    """Needed for a fresh model. For one that exists, its own, or a larger one whose new tokens it is to learn."""
    model: ModelFolder | None = None
    """Continue from this model, whose shape then holds; the learning rate warms up again."""
    new_token_steps: int = Field(default=0, ge=0)
    """New tokens begin as the mean of their pieces; for so many steps their rows then learn alone, all else frozen."""
    replay: Corpus | None = None
    """What the model knew before: mixed in against forgetting, which is measured on its validation split."""
    replay_share: float = Field(default=0.1, gt=0, lt=1, allow_inf_nan=False)
    """Share of the rows that come from `replay`."""
    index: ChunkIndex | None = None
    """Look up neighbours of each chunk here, never of the same document."""
    retrieval: RetrievalConfig = RetrievalConfig()
    """What is done with them; for use with `index`."""
    dim: int = Field(default=256, gt=0)
    """Width of the residual stream."""
    layers: int = Field(default=4, gt=0)
    """Layers of the decoder."""
    heads: int = Field(default=4, gt=0)
    """Query heads of each layer."""
    kv_heads: int = Field(default=2, gt=0)
    """Key/value heads of each layer; divides `heads`."""
    head_dim: int = Field(default=64, gt=0, multiple_of=2)
    """Width of each head."""
    hidden: int = Field(default=704, gt=0)
    """Width inside the SwiGLU feed-forward."""
    tie_embeddings: bool = False
    """Use the embedding table as the output projection."""

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        return self

    @model_validator(mode="after")
    def _check_start(self) -> Self:
        if self.model is None and self.tokenizer is None:
            raise ValueError("give tokenizer for a fresh model, or model to continue from one")
        if self.model is None and self.replay is not None:
            raise ValueError("replay is for a model that exists; give model, or leave replay out")
        if self.new_token_steps and (self.model is None or self.tokenizer is None):
            raise ValueError("new_token_steps is for a model that gets another tokenizer; give both, or leave it out")
        if self.index is not None and self.replay is not None:
            raise ValueError("index and replay exclude each other")
        if self.index is None and "retrieval" in self.model_fields_set:
            raise ValueError("retrieval needs index, where neighbours are looked up")
        shape = {"dim", "layers", "heads", "kv_heads", "head_dim", "hidden", "tie_embeddings"}
        given = sorted(shape & self.model_fields_set)
        if self.model is not None and given:
            raise ValueError(f"{given[0]} is the model's own when model is given; leave it out")
        return self


class AdapterConfig(Config):
    """What of the model is trained."""

    method: Literal["full", "lora", "dora"] = "full"
    """full: every weight. lora, dora: small factors beside frozen projections; `adapter/` in the output holds them."""
    rank: int = Field(default=16, gt=0)
    """Width of the factors."""
    alpha: float = Field(default=32.0, gt=0, allow_inf_nan=False)
    """The factors' product counts alpha / rank times."""
    rank_stabilised: bool = False
    """Count it alpha / √rank times instead, so that the size of an update does not shrink with the rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the factors' inputs left out at random while training."""
    targets: tuple[str, ...] = ()
    """Projections to adapt by the last part of their name, such as q_proj; none given, all inside the blocks."""
    base: Literal["full", "int8", "nf4"] = "full"
    """Number format the frozen projections rest in while training; nf4 is QLoRA's. The result merges what they hold."""

    @model_validator(mode="after")
    def _check_method(self) -> Self:
        if self.method == "full" and self.base != "full":
            raise ValueError(f"base={self.base!r} freezes the model, so method must be lora or dora")
        return self


class SftConfig(TrainConfig):
    """Teach a model to answer: only the assistant's tokens enter the loss."""

    conversations: Conversations
    """The conversations to learn from."""
    model: ModelFolder
    """The model to teach."""
    adapter: AdapterConfig = AdapterConfig()
    too_long: Literal["error", "truncate", "drop"] = "error"
    """What to do with a conversation longer than the context."""


class ExtendContextConfig(TrainConfig):
    """Teach a model with rotary positions to read further, by YaRN."""

    corpus: Corpus
    """Its texts stand one after another in rows of `context`, and see each other."""
    model: ModelFolder
    """The model to teach."""
    context: int = Field(gt=1)
    """Tokens that the model is to read; two to sixteen times what it reads now is usual."""


class MergeAdapterConfig(Config):
    """Merge a PEFT adapter into its model, for engines that know no adapters."""

    model: ModelFolder
    """The model the adapter was trained on."""
    adapter: Source
    """A folder with adapter_config.json and adapter_model.safetensors."""
    save_as: Literal["float32", "bfloat16"] = "float32"
    """Number format of the written weights."""
