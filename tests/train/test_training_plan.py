"""Forecasts of training against processes that do train."""

import json
import subprocess
import sys

import pytest
import torch

from wenfang.core.hardware import detect
from wenfang.model import DecoderConfig
from wenfang.train import adam8bit
from wenfang.train.config import AdapterConfig, OptimizerConfig
from wenfang.train.placement import native_bf16
from wenfang.train.plan import plan_training

SHAPE = DecoderConfig(vocab_size=6000, dim=320, layers=4, heads=5, kv_heads=5, hidden=960, context=256, qk_norm=None)
SMALL = DecoderConfig(vocab_size=500, dim=128, layers=1, heads=2, kv_heads=2, hidden=384, context=64)
BATCH = 8
MEASURE = """
import json, sys
import torch
from wenfang.core.allocator import keep_freed_memory
from wenfang.core.hardware import peak_memory_bytes
from wenfang.model import Decoder, DecoderConfig
from wenfang.train.adapter import adapt
from wenfang.train.config import AdapterConfig, OptimizerConfig
from wenfang.train.loss import cross_entropy_sum
from wenfang.train.optimizer import make_optimizers

shape, adapter, batch = json.loads(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
dtype, compiled = getattr(torch, sys.argv[4]), sys.argv[5] == "compiled"
keep_freed_memory()  # As the training loop does.
model = Decoder(DecoderConfig(**shape))
model.initialise()
adapt(model, AdapterConfig(**adapter))
optimizers = make_optimizers(model, OptimizerConfig(name="adamw"))
ids_BT = torch.randint(0, model.config.vocab_size, (batch, model.config.context))
positions_BT = torch.arange(model.config.context).expand_as(ids_BT).contiguous()
objective = torch.compile(cross_entropy_sum, dynamic=False) if compiled else cross_entropy_sum
for _ in range(3):
    loss = objective(model, ids_BT, ids_BT, torch.zeros_like(ids_BT), positions_BT, dtype)
    (loss / ids_BT.numel()).backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    del loss
states = [t for o in optimizers for s in o.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
print(json.dumps([peak_memory_bytes(), sum(t.nbytes for t in states)]))
"""


WAYS = {
    "full": (AdapterConfig(), "eager"),
    "lora": (AdapterConfig(method="lora"), "eager"),
    "qlora": (AdapterConfig(method="lora", base="nf4"), "eager"),
    "compiled": (AdapterConfig(), "compiled"),
    "compiled qlora": (AdapterConfig(method="lora", base="nf4"), "compiled"),
}


@pytest.mark.parametrize("way", WAYS)
def test_memory_is_forecast_within_15_percent_of_the_peak_of_a_process_that_trains(way: str) -> None:
    (adapter, form), context = WAYS[way], SHAPE.context
    # What this processor computes by itself: bf16 that it must emulate takes a minute a step.
    dtype = "bfloat16" if native_bf16(torch.device("cpu")) else "float32"
    plan = plan_training(SHAPE, batch=BATCH, context=context, adapter=adapter, dtype=dtype, compiled=form == "compiled")
    texts = (SHAPE.model_dump_json(), adapter.model_dump_json(), str(BATCH), dtype, form)
    command = [sys.executable, "-c", MEASURE, *texts]
    # The least of up to three, as what allocators hold back differs from run to run; compiling takes too long for that.
    peaks: list[int] = []
    for _ in range(1 if form == "compiled" else 3):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peak, states = json.loads(done.stdout.splitlines()[-1])
        peaks.append(peak)
        if plan.memory_bytes == pytest.approx(min(peaks), rel=0.15):
            break
    assert plan.memory_bytes == pytest.approx(min(peaks), rel=0.15)
    assert plan.optimizer_bytes == states


def test_arithmetic_of_a_step_is_six_per_weight_and_token_plus_attention() -> None:
    plan = plan_training(SMALL, batch=2, context=64, dtype="float32")
    # The formula has six products of attention, of half a square each. Our kernel computes the scores once more on its
    # way back; plain products, where it cannot run, compute the whole square.
    more = 7 / 6 if detect().compiler else 2
    attention = more * (SMALL.training_flops(1, 64) - 6 * SMALL.matmul_parameters)
    assert plan.flops_per_token == pytest.approx(6 * SMALL.matmul_parameters + attention, rel=0.001)
    lora_config = AdapterConfig(method="lora", rank=1)
    lora = plan_training(SMALL, batch=2, context=64, dtype="float32", adapter=lora_config)
    assert lora.flops_per_token < 0.8 * plan.flops_per_token  # No gradients of frozen weights.


def test_quantised_bases_and_small_optimisers_take_the_space_their_formats_say() -> None:
    blocks = SMALL.matmul_parameters - SMALL.vocab_size * SMALL.dim
    lora, qlora = (
        plan_training(SMALL, batch=1, context=64, adapter=AdapterConfig(method="lora", base=base))
        for base in ("full", "nf4")
    )
    # 4 bytes against half a byte and an fp32 scale per 64 weights (Dettmers et al. 2023, without double quantisation).
    assert lora.weights_bytes - qlora.weights_bytes == pytest.approx(blocks * (4 - 0.5 - 4 / 64), rel=0.01)
    bytes_per_weight = {
        name: plan_training(SMALL, batch=1, context=64, optimizer=OptimizerConfig(name=name)).optimizer_bytes
        / SMALL.parameters
        for name in ("adamw", "adam8bit", "lion")
    }
    assert bytes_per_weight["adamw"] == pytest.approx(8, rel=0.01)
    assert bytes_per_weight["lion"] == pytest.approx(4, rel=0.01)
    assert bytes_per_weight["adam8bit"] == pytest.approx(2, rel=0.1)


def test_a_forecast_leaves_nothing_behind_that_training_meets() -> None:
    """The levels of eight bits are made once; a forecast, whose tensors have no numbers, may be the first to ask."""
    adam8bit._TABLES.clear()
    plan_training(SMALL, batch=1, context=64, optimizer=OptimizerConfig(name="adam8bit"))
    values = torch.linspace(-1, 1, 4096)
    again = adam8bit.dequantise(*adam8bit.quantise(values, signed=True), signed=True)
    # 64 levels cover [0.1, 1], so they lie 0.9 / 64 apart.
    assert (again - values).abs().max() <= 0.9 / 64
