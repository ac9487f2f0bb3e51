"""The `config.json` fields that the Llama-like families share."""

from typing import Any

from pydantic import ValidationError

from wenfang.core.errors import ModelError
from wenfang.core.language import say
from wenfang.model.config import DecoderConfig, RopeConfig
from wenfang.model.families.weights import Link

BASE_LINKS: tuple[Link, ...] = (
    Link("lm_head", "lm_head"),
    Link("embed_tokens", "model.embed_tokens"),
    Link("norm", "model.norm"),
    Link("layers.*.mixer_norm", "model.layers.*.input_layernorm"),
    Link("layers.*.mixer", "model.layers.*.self_attn"),
    Link("layers.*.mlp_norm", "model.layers.*.post_attention_layernorm"),
    Link("layers.*.mlp", "model.layers.*.mlp"),
)
"""Llama's names."""


def base_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """Fields every Llama-like family writes."""
    rope = config.ropes[0] or RopeConfig()
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.hidden,
        "max_position_embeddings": config.context,
        "rope_theta": rope.theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": rope.theta},
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
    }


def base_from_hf(values: dict[str, Any], *, qk_norm: bool) -> DecoderConfig:
    """Read those fields back, refusing every setting the decoder does not implement.

    Raises:
        ModelError: a field is missing, has the wrong type, or asks for something unsupported.
    """
    refuse_unless(values, "hidden_act", "silu")
    refuse_unless(values, "attention_bias", False)
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    refuse_unless(rope, "rope_type", "default")
    try:
        return DecoderConfig(
            vocab_size=values["vocab_size"],
            dim=values["hidden_size"],
            layers=values["num_hidden_layers"],
            heads=values["num_attention_heads"],
            kv_heads=values.get("num_key_value_heads") or values["num_attention_heads"],
            head_dim=values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"],
            hidden=values["intermediate_size"],
            context=values["max_position_embeddings"],
            ropes=(RopeConfig(theta=rope.get("rope_theta") or values.get("rope_theta") or 10_000.0),),
            norm_eps=values["rms_norm_eps"],
            qk_norm=qk_norm,
            tie_embeddings=values.get("tie_word_embeddings", False),
        )
    except KeyError as error:
        raise ModelError(
            say(zh=f"config.json 缺少 {error.args[0]!r}。", en=f"config.json lacks {error.args[0]!r}.")
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ModelError(
            say(
                zh=f"config.json 的值不對：{field} {first['msg']}",
                en=f"config.json is wrong: {field} {first['msg']}",
            )
        ) from None


def is_plain(config: DecoderConfig) -> bool:
    """Whether the attention is what Llama has."""
    plain = DecoderConfig(vocab_size=1)
    same = all(getattr(config, f) == getattr(plain, f) for f in ("mixers", "windows", "attention_scale"))
    return same and config.attention_softcap is None and len(config.ropes) == 1 and config.ropes[0] is not None


def refuse_unless(values: dict[str, Any], field: str, expected: object) -> None:
    """Refuse a model whose `field` is set to something the decoder would silently get wrong.

    Raises:
        ModelError: the field is present with another value.
    """
    if values.get(field, expected) not in (expected, None):
        raise ModelError(
            say(
                zh=f"config.json 的 {field}={values[field]!r} 尚不支援（只支援 {expected!r}）。",
                en=f"config.json sets {field}={values[field]!r}, which is not supported (only {expected!r} is).",
            )
        )
