"""Forecasts from shallow decoders are those of the whole decoder, to the byte and the operation."""

import pytest

from wenfang.model import DecoderConfig, depth
from wenfang.model.mixers.config import Mamba2Config
from wenfang.model.parts import MlaConfig, MoeConfig, RetroConfig, RopeConfig
from wenfang.model.plan import plan_inference
from wenfang.train.config import AdapterConfig, OptimizerConfig
from wenfang.train.plan import plan_training

SMALL = {"vocab_size": 500, "dim": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "hidden": 96, "context": 32}
SHAPES = {
    "llama": DecoderConfig(**SMALL, layers=14, qk_norm=None),
    # Where the head outweighs a layer, or the other way round, a step has its peak elsewhere.
    "large vocabulary": DecoderConfig(**SMALL | {"vocab_size": 20_000}, layers=9, tie_embeddings=True),
    "wide layers": DecoderConfig(**SMALL | {"vocab_size": 20, "hidden": 4000}, layers=9),
    "gemma 3": DecoderConfig(
        **SMALL, layers=19, windows=(8, 8, None), ropes=(RopeConfig(), RopeConfig(), RopeConfig(theta=1e6)),
        norm_placement="sandwich", attention_softcap=5.0,
    ),
    "deepseek": DecoderConfig(
        **SMALL | {"kv_heads": 4, "head_dim": 24}, layers=10, ahead=1,
        mla=MlaConfig(kv_rank=16, rope_dim=8, value_dim=16),
        moe=MoeConfig(experts=8, active=2, hidden=48, layers=(False, False, *[True] * 8), balance="bias"),
    ),
    "hybrid": DecoderConfig(
        **SMALL, layers=19, mixers=("mamba2", "mamba2", "attention"),
        mamba2=Mamba2Config(heads=4, head_dim=16, state_dim=8, chunk=8),
    ),
    "rwkv7": DecoderConfig(**SMALL, layers=9, mixers="rwkv7", token_shift=True, gated=False, activation="relu2"),
    "retro": DecoderConfig(**SMALL, layers=12, retro=RetroConfig(chunk=8, layers=(1, 11))),
}  # fmt: skip


def layers_measured(config: DecoderConfig) -> int:
    """How many layers `measure_depth` builds, all decoders together."""
    built: list[int] = []
    depth.measure_depth(config, lambda shape, *_: built.append(shape.layers) or {})
    return sum(built)


@pytest.mark.parametrize("name", SHAPES)
def test_generating_takes_what_all_layers_take(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert layers_measured(SHAPES[name]) < SHAPES[name].layers
    shallow = plan_inference(SHAPES[name], context=32)
    monkeypatch.setattr(depth, "_find", lambda kinds: None)
    assert shallow == plan_inference(SHAPES[name], context=32)


WAYS = {
    "adamw": {},
    "muon": {"optimizer": OptimizerConfig(name="muon")},
    "recompute": {"recompute": True},
    "qlora": {"adapter": AdapterConfig(method="lora", base="nf4", rank=4)},
}


# The peak lies on the way forward, in the last layers, in the first ones, or in the update: each of them in some case.
@pytest.mark.parametrize(
    ("name", "way", "batch"),
    [
        ("llama", "adamw", 4),
        ("large vocabulary", "adamw", 4),
        ("large vocabulary", "muon", 1),
        ("wide layers", "adamw", 1),
        ("wide layers", "qlora", 4),
        ("gemma 3", "adamw", 1),
        ("deepseek", "adamw", 1),
        ("hybrid", "recompute", 1),
        ("rwkv7", "adamw", 4),
        ("retro", "muon", 1),
    ],
)
def test_training_takes_what_all_layers_take(name: str, way: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shallow = plan_training(SHAPES[name], batch=batch, context=32, **WAYS[way])
    monkeypatch.setattr(depth, "_find", lambda kinds: None)
    assert shallow == plan_training(SHAPES[name], batch=batch, context=32, **WAYS[way])


def test_a_model_of_126_layers_is_measured_on_five() -> None:
    assert layers_measured(SHAPES["llama"].model_copy(update={"layers": 126})) == 2 + 3


def test_layers_that_do_not_repeat_are_measured_each() -> None:
    windows = tuple(range(1, 10))
    assert layers_measured(SHAPES["llama"].model_copy(update={"layers": 9, "windows": windows})) == 9
