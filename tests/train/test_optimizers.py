"""Optimisers and schedules against torch.optim, transformers and the papers' formulas."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from wenfang.model import Decoder
from wenfang.train.adam8bit import Adam8bit, dequantise, levels, quantise
from wenfang.train.config import OptimizerConfig
from wenfang.train.galore import GaLore
from wenfang.train.lion import Lion
from wenfang.train.objective import Task
from wenfang.train.optimizer import make_optimizers
from wenfang.train.schedule import rate, set_rate

ADAM = {"lr": 0.01, "betas": (0.9, 0.95)}


def walk(optimizer: torch.optim.Optimizer, weight: nn.Parameter, gradients: list[torch.Tensor]) -> torch.Tensor:
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight.detach()


def gradients(*shape: int, steps: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator) for _ in range(steps)]


def start(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.linspace(-1, 1, math.prod(shape)).view(shape))


def test_lion_is_the_paper_s_formula() -> None:
    weight, momentum = start(3, 4).detach().clone(), torch.zeros(3, 4)
    for g in gradients(3, 4):
        weight = weight * (1 - 0.01 * 0.1) - 0.01 * torch.sign(0.9 * momentum + 0.1 * g)
        momentum = 0.99 * momentum + 0.01 * g
    ours = start(3, 4)
    optimizer = Lion([{"params": [ours], "weight_decay": 0.1}], lr=0.01)
    torch.testing.assert_close(walk(optimizer, ours, gradients(3, 4)), weight)


def test_small_weights_in_adam8bit_walk_as_torch_s_adamw() -> None:
    ours, theirs = start(5, 7), start(5, 7)
    mine = Adam8bit([{"params": [ours], "weight_decay": 0.1}], **ADAM)
    reference = torch.optim.AdamW([theirs], **ADAM, weight_decay=0.1)
    torch.testing.assert_close(walk(mine, ours, gradients(5, 7)), walk(reference, theirs, gradients(5, 7)))


def test_adam8bit_stays_near_adamw_in_a_quarter_of_the_memory() -> None:
    shape = (64, 100)
    ours, theirs = start(*shape), start(*shape)
    mine, reference = Adam8bit([{"params": [ours]}], **ADAM), torch.optim.AdamW([theirs], **ADAM, weight_decay=0.0)
    drift = walk(mine, ours, gradients(*shape, steps=20)) - walk(reference, theirs, gradients(*shape, steps=20))
    # Neighbouring levels are up to 7% apart near a block's largest value and further below it.
    assert drift.norm() < 0.05 * (theirs - start(*shape)).norm()
    held = [sum(v.nbytes for v in o.state[w].values()) for o, w in ((mine, ours), (reference, theirs))]
    assert held[0] < 0.27 * held[1]


@pytest.mark.parametrize("signed", [True, False])
def test_eight_bits_hold_seven_decades(signed: bool) -> None:
    table = levels(torch.device("cpu"), signed=signed)
    assert table.shape == (256,)
    assert table.diff().min() > 0
    assert table[-1] == 1
    values = torch.logspace(-6, 0, 600) * (torch.tensor([1.0, -1.0]).repeat(300) if signed else 1)
    codes, scales = quantise(values.sort().values, signed=signed)
    error = (dequantise(codes, scales, signed=signed) - values.sort().values).abs() / scales.repeat_interleave(256)[
        :600
    ]
    # Rounding goes to the nearest level: never further than half the widest gap.
    assert error.max() <= table.diff().max() / 2 + 1e-6
    exact = torch.tensor([0.0, 3.0, 3.0, 0.0])
    torch.testing.assert_close(dequantise(*quantise(exact, signed=signed), signed=signed), exact)


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_galore_of_full_rank_is_adam_in_a_rotated_basis(shape: tuple[int, int]) -> None:
    ours = start(*shape)
    optimizer = GaLore([{"params": [ours]}], **ADAM, rank=6, refresh=100, scale=0.5)
    moved = walk(optimizer, ours, gradients(*shape))
    # By the paper's algorithm 1, written out on the tall orientation.
    weight = start(*shape).detach()
    weight = weight if shape[0] > shape[1] else weight.mT
    first = second = torch.zeros(10, 6)
    _, _, vh = torch.linalg.svd(gradients(*shape)[0] if shape[0] > shape[1] else gradients(*shape)[0].mT, False)
    for step, gradient in enumerate(gradients(*shape), start=1):
        low = (gradient if shape[0] > shape[1] else gradient.mT) @ vh.mT
        first, second = 0.9 * first + 0.1 * low, 0.95 * second + 0.05 * low**2
        normal = (first / (1 - 0.9**step)) / ((second / (1 - 0.95**step)).sqrt() + 1e-8)
        weight = weight - 0.01 * 0.5 * normal @ vh
    torch.testing.assert_close(moved, weight if shape[0] > shape[1] else weight.mT, rtol=1e-4, atol=1e-5)


def test_galore_of_low_rank_moves_within_the_gradient_s_leading_directions() -> None:
    weight, gradient = start(12, 8), gradients(12, 8, steps=1)
    before = weight.detach().clone()
    optimizer = GaLore([{"params": [weight]}], **ADAM, rank=2, refresh=1, scale=1.0)
    moved = walk(optimizer, weight, gradient) - before
    assert torch.linalg.matrix_rank(moved, atol=1e-4) == 2
    _, _, vh = torch.linalg.svd(gradient[0], full_matrices=False)
    torch.testing.assert_close(moved @ vh[:2].mT @ vh[:2], moved, rtol=1e-4, atol=1e-5)
    assert optimizer.state[weight]["first"].shape == (12, 2)


@pytest.mark.parametrize("name", ["adamw", "adam8bit", "lion", "galore", "muon"])
def test_each_optimiser_learns(name: str, tiny_model: Callable[[], Decoder], task: Task) -> None:
    model, batch = tiny_model(), task.training.batch(np.arange(4))
    optimizers = make_optimizers(model, OptimizerConfig(name=name, lr=0.01, galore_rank=8, galore_refresh=5))
    losses = []
    for _ in range(40):
        loss = task.objective(model, **batch.tensors).total / batch.count
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(math.log(23), rel=1e-3)  # The head starts at zero: uniform.
    assert losses[-1] < 0.8 * losses[0]


def test_groups_decay_matrices_and_slow_lower_layers(tiny_model: Callable[[], Decoder]) -> None:
    model = tiny_model()
    config = OptimizerConfig(name="adamw", lr=0.1, weight_decay=0.3, layer_decay=0.5)
    optimizers = make_optimizers(model, config)
    set_rate(optimizers, 0.5)
    groups = {id(w): group for o in optimizers for group in o.param_groups for w in group["params"]}
    assert set(groups) == {id(weight) for weight in model.parameters()}
    below_the_top = {"embed_tokens": 2, "layers.0": 1, "layers.1": 0, "norm": 0, "lm_head": 0}
    for name, weight in model.named_parameters():
        depth = next(n for prefix, n in below_the_top.items() if name.startswith(prefix))
        assert groups[id(weight)]["lr"] == pytest.approx(0.1 * 0.5 * 0.5**depth)
        matrix = name.startswith("layers.") and name.endswith("proj.weight")
        assert groups[id(weight)]["weight_decay"] == (0.3 if matrix else 0.0)


@pytest.mark.parametrize(
    ("name", "reference"), [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)]
)
def test_schedules_equal_transformers_after_the_warm_up(name: str, reference: Callable[..., object]) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = reference(optimizer, 10, 100)
    expected = []
    for _ in range(100):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    config = OptimizerConfig(schedule=name, warmup=0.1)
    ours = [rate(step, 100, config) for step in range(100)]
    assert ours[10:] == pytest.approx(expected[10:])
    # Theirs wastes the first step on a rate of zero; ours rises one step earlier.
    assert ours[:10] == pytest.approx(expected[1:11])


def test_a_floor_and_a_constant_rate() -> None:
    floor = [rate(s, 100, OptimizerConfig(schedule="cosine", warmup=0, floor=0.1)) for s in (0, 50, 99)]
    assert floor == pytest.approx([1.0, 0.55, 0.1], abs=1e-3)
    assert {rate(s, 100, OptimizerConfig(schedule="constant", warmup=0)) for s in range(100)} == {1.0}
