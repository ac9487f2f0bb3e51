"""Forecasts of inference against a process that generates, real caches, and torch's own count of operations."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from wenfang.core.device import PRESETS
from wenfang.core.errors import ModelError
from wenfang.core.hardware import detect
from wenfang.engine.blocks import BLOCK, BlockPool
from wenfang.engine.runner import Runner
from wenfang.engine.sequence import Sequence
from wenfang.model import Decoder, DecoderConfig
from wenfang.model.memory import Memory
from wenfang.model.parts import MlaConfig, MoeConfig
from wenfang.model.plan import plan_inference, read_shape

HYBRID = DecoderConfig(vocab_size=500, dim=64, layers=4, head_dim=16, hidden=96, mixers=("mamba2", "attention"))
LATENT = DecoderConfig(
    vocab_size=500, dim=64, layers=2, heads=4, kv_heads=4, head_dim=24, hidden=96,
    mla=MlaConfig(kv_rank=16, rope_dim=8, value_dim=16), moe=MoeConfig(experts=8, active=2, hidden=48),
)  # fmt: skip
LARGE = DecoderConfig(vocab_size=32000, dim=1024, layers=8, heads=16, kv_heads=8, hidden=2816, context=1024)
GENERATE = """
import json, sys
import torch
from wenfang.core.hardware import peak_memory_bytes
from wenfang.engine.blocks import BLOCK, BlockPool
from wenfang.engine.runner import Runner
from wenfang.engine.sequence import Sequence
from wenfang.model import Decoder, DecoderConfig

config = DecoderConfig(**json.loads(sys.argv[1]))
torch.set_default_dtype(getattr(torch, sys.argv[3]))
with torch.inference_mode():
    model, count, length = Decoder(config), int(sys.argv[2]), config.context
    pool = BlockPool(count * -(-length // BLOCK))
    runner = Runner(model, pool.available)
    for _ in range(count):
        sequence = Sequence([1] * length)
        sequence.reserve(pool, length)
        for tokens in (length - 1, 1):
            runner.logits(runner.run([sequence], [tokens])[0][-1:])
            sequence.computed += tokens
print(peak_memory_bytes())
"""


def test_memory_is_forecast_within_15_percent_of_the_peak_of_a_process_that_generates() -> None:
    # What this processor computes by itself: bf16 that it must emulate takes most of a minute.
    dtype = "bfloat16" if detect().bf16 else "float32"
    plan = plan_inference(LARGE, dtype=dtype, sequences=2)
    command = [sys.executable, "-c", GENERATE, LARGE.model_dump_json(), "2", dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert plan.memory_bytes == pytest.approx(int(done.stdout.splitlines()[-1]), rel=0.15)


@pytest.mark.parametrize("config", [HYBRID, LATENT], ids=["hybrid", "latent"])
def test_caches_and_states_have_the_size_that_the_engine_gives_them(config: DecoderConfig) -> None:
    plan = plan_inference(config, dtype="float32")
    pool = BlockPool(1)
    with torch.inference_mode():
        model = Decoder(config)
        model.initialise()
        runner = Runner(model, pool.available)
        sequence = Sequence([1, 2, 3])
        sequence.reserve(pool, 3)
        runner.run([sequence], [3])
    places = 2 * BLOCK  # One block and the spare one.
    cache = runner._cache
    kept = sum(t.nbytes for pools in (cache.keys_PGK, cache.values_PGV) for t in pools.values())
    assert plan.cache_bytes_per_token * places == kept
    assert plan.state_bytes == sum(part.nbytes for state in sequence.states.values() for part in state)
    assert plan.weights_bytes == pytest.approx(4 * config.parameters, rel=1e-4)  # Counters of experts besides.


def test_arithmetic_is_what_torch_counts_while_it_runs() -> None:
    config = HYBRID.model_copy(update={"mixers": ("mamba2",)})
    model, ids_1T = Decoder(config), torch.zeros(1, 64, dtype=torch.long)
    model.initialise()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        states_1TD = model.hidden(ids_1T, torch.arange(64)[None], Memory(), torch.float32)
        model.logits(states_1TD[:, -1:])
    plan = plan_inference(config, dtype="float32", context=64)
    assert plan.prompt_flops_per_token * 64 == counter.get_total_flops()


def test_experts_that_sleep_are_neither_read_nor_counted() -> None:
    plan = plan_inference(LATENT, dtype="float32")
    idle = 2 * 6 * 3 * 64 * 48  # Layers, sleeping experts, matrices of each, and their sides.
    assert plan.parameters - plan.active_parameters == idle
    assert plan.weights_bytes - plan.active_bytes == 4 * (idle + LATENT.vocab_size * LATENT.dim)


def test_speed_follows_the_hardware() -> None:
    plan = plan_inference(LARGE)
    h100, h200 = PRESETS["h100"], PRESETS["h200"]
    assert plan.prefill_tokens_per_s(h100) == plan.prefill_tokens_per_s(h200)
    assert plan.decode_tokens_per_s(h100) < plan.decode_tokens_per_s(h200)
    unlimited = h100.model_copy(update={"dispatch_us": 0.0})
    # At 989 TFLOP/s and 3,350 GB/s one sequence waits for memory alone.
    assert plan.decode_tokens_per_s(unlimited) == pytest.approx(3350e9 / (plan.active_bytes + plan.cache_bytes))


def test_shapes_are_read_from_yaml_and_refused_with_the_field_at_fault(tmp_path: Path) -> None:
    path = tmp_path / "shape.yaml"
    path.write_text("vocab_size: 500\ndim: 64\nmixers: [mamba2, attention]\nlayers: 4\nhead_dim: 16\nhidden: 96\n")
    assert read_shape(path) == HYBRID
    path.write_text("vocab_size: 500\nwidth: 64\n")
    with pytest.raises(ModelError, match="width"):
        read_shape(path)
    path.write_text("vocab_size: 500\nheads: 3\nkv_heads: 2\n")
    with pytest.raises(ModelError, match=r"decoder: heads \(3\) must be a multiple of kv_heads"):
        read_shape(path)
    path.write_text("vocab_size: 500\nlayers: 100000000\n")
    with pytest.raises(ModelError, match=r"layers: .* 10000"):
        read_shape(path)
    path.write_text("[")
    with pytest.raises(ModelError, match=r"shape\.yaml"):
        read_shape(path)
