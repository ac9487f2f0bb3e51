"""The typed shape of a decoder."""

from typing import Literal, Self

from pydantic import Field, model_validator

from wenfang.core.config import Config
from wenfang.model.mixers.config import GatedDeltaNetConfig, Mamba2Config, Rwkv7Config, TttConfig
from wenfang.model.parts import Count, MlaConfig, MoeConfig, Pattern, Positive, RetroConfig, RopeConfig, T

Mixer = Literal["attention", "mamba2", "gated_deltanet", "rwkv7", "ttt"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu2"]


MOST_LAYERS = 10_000
"""Far beyond any model; a hostile file that claims more would fill the memory."""


class DecoderConfig(Config):
    """Shape of a decoder-only language model. Each idea is a field; the defaults make a small Qwen3."""

    vocab_size: Count
    """Rows of the embedding table."""
    dim: Count = 256
    """Width of the residual stream."""
    layers: int = Field(default=6, gt=0, le=MOST_LAYERS)
    heads: Count = 4
    """Query heads."""
    kv_heads: Count = 2
    """Key/value heads; divides `heads` (GQA, Ainslie et al. 2023)."""
    head_dim: int = Field(default=64, gt=0, multiple_of=2)
    hidden: int = Field(default=768, ge=0)
    """Width inside the dense feed-forward; 0 for blocks without one (Mamba-2)."""
    context: Count = 256
    """Longest sequence in tokens."""
    family: str | None = None
    """Hugging Face `model_type` to be written as where several could hold the architecture."""

    mixers: Pattern[Mixer] = ("attention",)
    """What carries information between positions, by layer."""
    mamba2: Mamba2Config = Mamba2Config()
    gated_deltanet: GatedDeltaNetConfig = GatedDeltaNetConfig()
    rwkv7: Rwkv7Config = Rwkv7Config()
    ttt: TttConfig = TttConfig()

    # Positions
    ropes: Pattern[RopeConfig | None] = (RopeConfig(),)
    """Rotary position embedding of the attention layers; None for none."""
    alibi: bool = False
    """Lower each score by the distance, at a slope per head (Press et al. 2022)."""
    absolute_positions: Literal["learned", "sinusoidal"] | None = None
    """Vectors added to the embeddings (GPT-2; Vaswani et al. 2017)."""

    # Attention
    windows: Pattern[Count | None] = (None,)
    """Sliding window in tokens, the query's own position included; None to see everything before."""
    attention_scale: Positive | None = None
    """Factor on q·k; None for 1/√head_dim."""
    attention_softcap: Positive | None = None
    """Bound the scores softly: cap · tanh(score / cap) (Gemma 2)."""
    attention_sinks: bool = False
    """A learned score per head that may take attention away from every token (gpt-oss 2025)."""
    attention_gate: bool = False
    """Multiply each head's output by a sigmoid of the layer's input (Qwen3-Next; Qiu et al. 2025)."""
    qk_norm: Literal["head", "projection"] | None = "head"
    """RMS-normalise queries and keys before RoPE, each head (Qwen3) or all heads together (OLMo 2)."""
    qkv_bias: bool = False
    o_bias: bool = False
    """Bias of the attention's output projection."""
    qkv_clip: Positive | None = None
    """Clamp queries, keys and values to ± this (MPT)."""
    mla: MlaConfig | None = None
    """Latent keys and values instead of key/value heads."""

    # Feed-forward
    activation: Activation = "silu"
    gated: bool = True
    """Multiply the activation by a second projection: SwiGLU with silu, GeGLU with gelu (Shazeer 2020)."""
    mlp_bias: bool = False
    token_shift: bool = False
    """Feed-forwards read each position mixed with the one before (RWKV)."""
    moe: MoeConfig | None = None
    """Experts instead of the dense feed-forward."""

    # Retrieval
    retro: RetroConfig | None = None
    """Cross-attention over neighbours that the memory brings; without them the model is as it would be without this."""

    # Norms, embeddings and head
    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm (Zhang & Sennrich 2019) or LayerNorm (Ba et al. 2016)."""
    norm_eps: Positive = 1e-6
    norm_bias: bool = False
    """Bias of LayerNorm."""
    norm_offset: bool = False
    """Multiply by 1 + weight (Gemma)."""
    norm_placement: Literal["pre", "post", "sandwich"] = "pre"
    """Before each sublayer, on its output (OLMo 2), or both (Gemma 2)."""
    embedding_norm: bool = False
    """Normalise the embeddings (BLOOM)."""
    embedding_scale: Positive | None = None
    """Factor on the embeddings (√dim in Gemma)."""
    tie_embeddings: bool = False
    """Use the embedding table as the output projection."""
    logit_softcap: Positive | None = None
    """Bound the logits softly (Gemma 2)."""
    ahead: int = Field(default=0, ge=0)
    """Further tokens that extra blocks learn to predict (multi-token prediction, DeepSeek-V3)."""

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.mla and self.kv_heads != self.heads:
            raise ValueError(f"with mla, kv_heads ({self.kv_heads}) must be heads ({self.heads})")
        if self.mla and self.mla.rope_dim >= self.head_dim:
            raise ValueError(f"mla.rope_dim ({self.mla.rope_dim}) must be less than head_dim ({self.head_dim})")
        if self.token_shift and self.moe:
            raise ValueError("token_shift and moe exclude each other")
        if self.retro and self.retro.layers[-1] >= self.layers:
            raise ValueError(f"retro.layers ({list(self.retro.layers)}) must be less than layers ({self.layers})")
        if self.retro and not self.hidden:
            raise ValueError("retro needs hidden, the width inside the neighbours' encoder")
        if self.norm == "rms" and self.norm_bias:
            raise ValueError("norm_bias needs norm=layer")
        return self

    def _at(self, pattern: tuple[T, ...], layer: int) -> T:
        """A layer's entry; the blocks that look ahead, after the last layer, are like it."""
        return pattern[min(layer, self.layers - 1) % len(pattern)]

    def mixer(self, layer: int) -> Mixer:
        """The sequence mixer of a layer."""
        return self._at(self.mixers, layer)

    def rope(self, layer: int) -> RopeConfig | None:
        """The rotary embedding of a layer."""
        return self._at(self.ropes, layer)

    def rope_width(self, rope: RopeConfig) -> int:
        """Channels of each head that are rotated."""
        return self.mla.rope_dim if self.mla else int(self.head_dim * rope.fraction)

    def window(self, layer: int) -> int | None:
        """The sliding window of a layer."""
        return self._at(self.windows, layer)

    def experts(self, layer: int) -> MoeConfig | None:
        """The experts of a layer; None where its feed-forward is dense."""
        return self.moe if self.moe and self._at(self.moe.layers, layer) else None

    def kv_shape(self) -> tuple[int, int, int]:
        """What an attention layer caches per token: key/value heads, width of a key, width of a value."""
        if self.mla:
            return 1, self.mla.kv_rank + self.mla.rope_dim, 0
        return self.kv_heads, self.head_dim, self.head_dim

    @property
    def parameters(self) -> int:
        """All trainable weights."""
        from wenfang.model.size import parameters

        return parameters(self)

    @property
    def matmul_parameters(self) -> int:
        """Weights that take part in a matrix product for each token (embedding look-up excluded; of the experts,
        the active ones)."""
        from wenfang.model.size import matmul_parameters

        return matmul_parameters(self)

    def training_flops(self, tokens: int, sequence: int) -> float:
        """Floating-point operations to train on `tokens` in rows of `sequence`: 6 per weight and token plus
        causal attention (PaLM, Chowdhery et al. 2022, appendix B, halved for the causal mask)."""
        seen = [min(self.window(layer) or sequence, sequence) for layer in self.attention_layers]
        width = self.head_dim + (self.mla.value_dim if self.mla else self.head_dim)
        return float(tokens) * (6 * self.matmul_parameters + 3 * self.heads * width * sum(seen))

    @property
    def attention_layers(self) -> list[int]:
        """The layers whose mixer is attention."""
        return [layer for layer in range(self.layers) if self.mixer(layer) == "attention"]

    @property
    def recurrent(self) -> bool:
        """Whether a layer carries a state from token to token."""
        return self.token_shift or len(self.attention_layers) < self.layers
