"""Our modules and llama.cpp's tensors, by architecture."""

from collections.abc import Iterator

from wenfang.model.config import DecoderConfig
from wenfang.model.families.tensor_map import HeadRows, Layout, Link, PairedRows, Rows
from wenfang.model.gguf.layouts import Decay, Offset, Pairs, Shaped, Stacked
from wenfang.model.mixers.rwkv7 import SHIFTED
from wenfang.model.parts import MlaConfig

OURS, THEIRS = "layers.*.", "blk.*."
QKV = (OURS + "mixer.q_proj", OURS + "mixer.k_proj", OURS + "mixer.v_proj")
ENDS = (Link("lm_head", "output"), Link("embed_tokens", "token_embd"), Link("norm", "output_norm"))
NORMS = (Link(OURS + "mixer_norm", THEIRS + "attn_norm"), Link(OURS + "mlp_norm", THEIRS + "ffn_norm"))
OUTPUT = Link(OURS + "mixer.o_proj", THEIRS + "attn_output")
FUSED = (Link(QKV, THEIRS + "attn_qkv"), OUTPUT)
FEED_FORWARD = (
    Link(OURS + "mlp.gate_proj", THEIRS + "ffn_gate"),
    Link(OURS + "mlp.up_proj", THEIRS + "ffn_up"),
    Link(OURS + "mlp.down_proj", THEIRS + "ffn_down"),
)


def _attention(q: Layout, k: Layout) -> tuple[Link, ...]:
    return (
        Link(OURS + "mixer.q_proj", THEIRS + "attn_q", q),
        Link(OURS + "mixer.k_proj", THEIRS + "attn_k", k),
        Link(OURS + "mixer.v_proj", THEIRS + "attn_v"),
        Link(OURS + "mixer.q_norm", THEIRS + "attn_q_norm"),
        Link(OURS + "mixer.k_norm", THEIRS + "attn_k_norm"),
        OUTPUT,
    )


def llama(config: DecoderConfig) -> tuple[Link, ...]:
    """Llama: rotary pairs are neighbours."""
    attention = _attention(Pairs(config.heads), Pairs(config.kv_heads))
    return (*ENDS, *NORMS, *attention, *_feed_forwards(config))


def qwen(config: DecoderConfig) -> tuple[Link, ...]:
    """Qwen: rotary halves, as ours."""
    return (*ENDS, *NORMS, *_attention(Rows(), Rows()), *_feed_forwards(config))


def olmo2(_: DecoderConfig) -> tuple[Link, ...]:
    """OLMo 2: norms on the sublayers' outputs."""
    return (*ENDS, *_post_norms(Rows()), *_attention(Rows(), Rows()), *FEED_FORWARD)


def gemma(config: DecoderConfig) -> tuple[Link, ...]:
    """Gemma: norms on both sides, stored as 1 + weight."""
    norms = (
        Link("norm", "output_norm", Offset()),
        *(Link(link.ours, link.theirs, Offset()) for link in NORMS),
        *_post_norms(Offset()),
        Link(OURS + "mixer.q_norm", THEIRS + "attn_q_norm", Offset()),
        Link(OURS + "mixer.k_norm", THEIRS + "attn_k_norm", Offset()),
    )
    return (*norms, *qwen(config))


def phi3(_: DecoderConfig) -> tuple[Link, ...]:
    """Phi-3: projections fused."""
    gate_up = Link((OURS + "mlp.gate_proj", OURS + "mlp.up_proj"), THEIRS + "ffn_up")
    return (*ENDS, *NORMS, *FUSED, gate_up, *FEED_FORWARD)


def fused(_: DecoderConfig) -> tuple[Link, ...]:
    """GPT-2, BLOOM and MPT: queries, keys and values fused, no gate."""
    embeddings = (Link("embed_positions", "position_embd"), Link("embed_norm", "token_embd_norm"))
    return (*ENDS, *embeddings, *NORMS, *FUSED, *FEED_FORWARD)


def mamba2(config: DecoderConfig) -> tuple[Link, ...]:
    """Mamba-2: one mixer a block."""
    shape, mixer = config.mamba2, OURS + "mixer."
    inner = shape.heads * shape.head_dim
    channels = inner + 2 * shape.groups * shape.state_dim
    return (
        *ENDS,
        *NORMS,
        Link(mixer + "in_proj", THEIRS + "ssm_in"),
        Link(mixer + "conv1d.weight", THEIRS + "ssm_conv1d.weight", Shaped((channels, shape.conv_width))),
        Link(mixer + "conv1d.bias", THEIRS + "ssm_conv1d.bias"),
        Link(mixer + "dt_bias", THEIRS + "ssm_dt.bias"),
        Link(mixer + "A_log", THEIRS + "ssm_a", Decay(column=True)),
        Link(mixer + "D", THEIRS + "ssm_d", Shaped((shape.heads, 1))),
        Link(mixer + "norm_weight", THEIRS + "ssm_norm.weight", Shaped((shape.groups, inner // shape.groups))),
        Link(mixer + "o_proj", THEIRS + "ssm_out"),
    )


def deepseek2(config: DecoderConfig) -> tuple[Link, ...]:
    """DeepSeek-V2 and V3: rotary pairs are neighbours within the rotated channels of each head."""
    mla = config.mla or MlaConfig(kv_rank=1, rope_dim=2, value_dim=1)
    queries, key = PairedRows(config.heads, mla.rope_dim), PairedRows(1, mla.rope_dim)
    mixer = OURS + "mixer."
    return (
        *ENDS,
        *NORMS,
        Link(mixer + "q_proj", THEIRS + "attn_q", queries),
        Link(mixer + "q_a_proj", THEIRS + "attn_q_a"),
        Link(mixer + "q_a_norm", THEIRS + "attn_q_a_norm"),
        Link(mixer + "q_b_proj", THEIRS + "attn_q_b", queries),
        Link(mixer + "kv_a_proj", THEIRS + "attn_kv_a_mqa", key),
        Link(mixer + "kv_a_norm", THEIRS + "attn_kv_a_norm"),
        Link(mixer + "kv_b_proj", THEIRS + "attn_kv_b"),
        OUTPUT,
        *_feed_forwards(config),
    )


def rwkv7(_: DecoderConfig) -> tuple[Link, ...]:
    """RWKV-7: time mix and channel mix."""
    return tuple(_rwkv7())


def _rwkv7() -> Iterator[Link]:
    mixer, time, channel = OURS + "mixer.", THEIRS + "time_mix_", THEIRS + "channel_mix_"
    yield from ENDS
    yield Link("embed_norm", "token_embd_norm")
    yield Link(OURS + "mixer_norm", THEIRS + "attn_norm")
    yield Link(OURS + "mlp_norm", THEIRS + "attn_norm_2")
    yield Link(tuple(f"{mixer}shifts.{name}" for name in SHIFTED), time + "lerp_fused.weight", Stacked())
    for name, letter in (("decay", "w"), ("rate", "a"), ("value", "v"), ("gate", "g")):
        yield Link(f"{mixer}{name}.bias", f"{time}{letter}0.weight")
        yield Link(f"{mixer}{name}.down", f"{time}{letter}1")
        yield Link(f"{mixer}{name}.up", f"{time}{letter}2")
    for name, theirs in (("r", "receptance"), ("k", "key"), ("v", "value"), ("o", "output")):
        yield Link(f"{mixer}{name}_proj", time + theirs)
    yield Link(mixer + "k_k", time + "k_k.weight")
    yield Link(mixer + "k_a", time + "k_a.weight")
    yield Link(mixer + "r_k", time + "r_k.weight", Shaped((-1,)))
    yield Link(mixer + "norm_weight", time + "ln.weight")
    yield Link(mixer + "norm_bias", time + "ln.bias")
    yield Link(OURS + "mlp.shift", channel + "lerp_k.weight")
    yield Link(OURS + "mlp.up_proj", channel + "key")
    yield Link(OURS + "mlp.down_proj", channel + "value")


def qwen3_next(config: DecoderConfig) -> tuple[Link, ...]:
    """Qwen3-Next: gated DeltaNet and gated attention by turns; norms as 1 + weight but that of DeltaNet's output."""
    return tuple(_qwen3_next(config))


def _qwen3_next(config: DecoderConfig) -> Iterator[Link]:
    linear, mixer = config.gated_deltanet, OURS + "mixer."
    yield Link("norm", "output_norm", Offset())
    yield Link(OURS + "mixer_norm", THEIRS + "attn_norm", Offset())
    yield Link(OURS + "mlp_norm", THEIRS + "post_attention_norm", Offset())
    for layer in range(config.layers):
        ours, theirs = f"layers.{layer}.mixer.", f"blk.{layer}."
        if config.mixer(layer) == "gated_deltanet":
            yield Link((ours + "q_proj", ours + "k_proj", ours + "v_proj"), theirs + "attn_qkv")
            yield Link(ours + "o_proj", theirs + "ssm_out")
    yield Link(mixer + "z_proj", THEIRS + "attn_gate")
    yield Link((mixer + "beta_proj", mixer + "alpha_proj"), THEIRS + "ssm_ba", HeadRows(linear.key_heads))
    channels = 2 * linear.key_heads * linear.key_dim + linear.value_heads * linear.value_dim
    yield Link(mixer + "conv1d.weight", THEIRS + "ssm_conv1d.weight", Shaped((channels, linear.conv_width)))
    yield Link(mixer + "A_log", THEIRS + "ssm_a", Decay(column=False))
    yield Link(mixer + "dt_bias", THEIRS + "ssm_dt.bias")
    yield Link(mixer + "norm_weight", THEIRS + "ssm_norm.weight")
    yield Link((mixer + "q_proj", mixer + "gate_proj"), THEIRS + "attn_q", HeadRows(config.heads))
    yield Link(mixer + "q_norm", THEIRS + "attn_q_norm", Offset())
    yield Link(mixer + "k_norm", THEIRS + "attn_k_norm", Offset())
    yield Link(OURS + "mlp.shared_gate.weight", THEIRS + "ffn_gate_inp_shexp.weight", Shaped((config.dim,)))
    yield from qwen(config)


def _post_norms(layout: Layout) -> tuple[Link, ...]:
    return (
        Link(OURS + "mixer_post_norm", THEIRS + "post_attention_norm", layout),
        Link(OURS + "mlp_post_norm", THEIRS + "post_ffw_norm", layout),
    )


def _feed_forwards(config: DecoderConfig) -> Iterator[Link]:
    """Experts where a layer has them, with a shared one beside; dense ones elsewhere."""
    for layer in filter(config.experts, range(config.layers)):
        ours, theirs = f"layers.{layer}.mlp.", f"blk.{layer}.ffn_"
        yield Link(ours + "router", theirs + "gate_inp")
        yield Link(ours + "choice_bias", f"blk.{layer}.exp_probs_b.bias")
        for name in ("gate", "up", "down"):
            yield Link(f"{ours}{name}_proj", f"{theirs}{name}_exps")
            yield Link(f"{ours}shared.{name}_proj", f"{theirs}{name}_shexp")
    yield from FEED_FORWARD
