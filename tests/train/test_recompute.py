"""Activation checkpointing changes memory and time, and nothing else."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from wenfang.core.errors import InputError
from wenfang.core.report import Reporter
from wenfang.model import Decoder, DecoderConfig
from wenfang.model.parts import MoeConfig
from wenfang.train.config import TrainConfig
from wenfang.train.loop import train
from wenfang.train.loss import cross_entropy_sum
from wenfang.train.objective import Task
from wenfang.train.plan import plan_training
from wenfang.train.recompute import recompute_blocks

BASE = {"vocab_size": 23, "dim": 16, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 8, "hidden": 24, "context": 32}
MOE = MoeConfig(experts=4, active=2, hidden=12, balance="loss")


def gradients(config: DecoderConfig, *, recompute: bool) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = Decoder(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, 0.1)
    if recompute:
        recompute_blocks(model)
    ids_BT = torch.randint(0, 23, (3, 32), generator=torch.Generator().manual_seed(2))
    documents_BT, positions_BT = torch.zeros_like(ids_BT), torch.arange(32).expand(3, -1)
    cross_entropy_sum(model, ids_BT, ids_BT.roll(-1, 1), documents_BT, positions_BT, torch.float32).backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize(
    "changes",
    [{}, {"moe": MOE}, {"mixers": ("mamba2", "attention")}, {"mixers": "gated_deltanet"}, {"ahead": 1}],
    ids=["attention", "experts", "hybrid", "deltanet", "ahead"],
)
def test_gradients_are_the_same(changes: dict[str, object]) -> None:
    config = DecoderConfig(**(BASE | changes))
    kept, again = (gradients(config, recompute=recompute) for recompute in (False, True))
    assert kept.keys() == again.keys()
    for name, gradient in kept.items():
        torch.testing.assert_close(again[name], gradient, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_run_is_the_same(
    dropout: float,
    task: Task,
    tiny_model: Callable[[], Decoder],
    tiny_config: Callable[..., TrainConfig],
    tmp_path: Path,
) -> None:
    weights = []
    for recompute in (False, True):
        model, out = tiny_model(), tmp_path / str(recompute)
        out.mkdir()
        train(model, task, tiny_config(recompute=recompute, dropout=dropout, steps=12), out, Reporter(), label="")
        weights.append(model.state_dict())
    for name, weight in weights[0].items():
        assert torch.equal(weights[1][name], weight), name


def test_a_step_needs_less_memory_and_a_third_more_arithmetic() -> None:
    shape = DecoderConfig(vocab_size=512, dim=128, layers=8, heads=4, kv_heads=4, head_dim=32, hidden=384, context=256)
    kept, again = (
        plan_training(shape, batch=8, context=256, dtype="float32", recompute=recompute) for recompute in (False, True)
    )
    assert again.working_bytes < 0.4 * kept.working_bytes
    assert 1.2 < again.flops_per_token / kept.flops_per_token < 4 / 3


def test_rwkv7_is_refused() -> None:
    with pytest.raises(InputError, match="RWKV-7"):
        recompute_blocks(Decoder(DecoderConfig(**BASE | {"mixers": "rwkv7", "ropes": (None,)})))
