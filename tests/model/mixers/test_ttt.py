"""The TTT layer against the paper's definition, taken literally: the loss of the inner model is written down, and
autograd takes its gradients one position at a time in float64. No library here has the layer."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from wenfang.model.mixers.config import TttConfig
from wenfang.model.mixers.ttt import Ttt

HEADS, WIDTH, DIM, MINI_BATCH = 2, 6, 10, 4


def random_mixer() -> Ttt:
    torch.manual_seed(2)
    config = TttConfig(heads=HEADS, head_dim=WIDTH, mini_batch=MINI_BATCH, learning_rate=3.0, rope_theta=100.0)
    mixer = Ttt(config, dim=DIM, layer=0)
    mixer.initialise()
    with torch.no_grad():
        for weight in mixer.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return mixer


def turned(x_K: Tensor, place: int) -> Tensor:
    """RoPE in complex numbers: channel pair j turns by place · θ^(−2j/K)."""
    half = WIDTH // 2
    angles = place * 100.0 ** (-torch.arange(half, dtype=torch.float64) * 2 / WIDTH)
    numbers = torch.complex(x_K[:half], x_K[half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((numbers.real, numbers.imag))


def literally(mixer: Ttt, x_TD: Tensor) -> Tensor:
    """Section 2 of the paper for one sequence, position by position."""
    weights = {name: weight.detach().double() for name, weight in mixer.named_parameters()}
    outputs_TE = torch.zeros(len(x_TD), HEADS * WIDTH, dtype=torch.float64)
    for head in range(HEADS):
        rows = slice(head * WIDTH, (head + 1) * WIDTH)
        gamma, beta = weights["inner_norm_weight"][head, 0], weights["inner_norm_bias"][head, 0]

        def inner(x: Tensor, w: Tensor, c: Tensor, gamma: Tensor = gamma, beta: Tensor = beta) -> Tensor:
            return x + F.layer_norm(x @ w + c, (WIDTH,), gamma, beta, 1e-6)

        w, c = weights["inner_weight"][head], weights["inner_bias"][head, 0]
        for t, x in enumerate(x_TD.double()):
            place = t % MINI_BATCH
            if place == 0:
                base_w, base_c, sum_w, sum_c = w, c, torch.zeros_like(w), torch.zeros_like(c)
            q, k = (turned(weights[f"{name}_proj.weight"][rows] @ x, place) for name in "qk")
            v = weights["v_proj.weight"][rows] @ x
            at = base_w.clone().requires_grad_(), base_c.clone().requires_grad_()
            gradient_w, gradient_c = torch.autograd.grad(0.5 * (inner(k, *at) - v).square().sum(), at)
            gate = (weights["rate_proj.weight"][head] @ x + weights["rate_bias"][head]).sigmoid()
            rate = 3.0 * gate / WIDTH
            sum_w, sum_c = sum_w + rate * gradient_w, sum_c + rate * gradient_c
            scale = (1 / (place + 1) + weights["place_scale"][place]).clamp_min(0.0)
            w, c = base_w - scale * sum_w, base_c - scale * sum_c
            outputs_TE[t, rows] = inner(q, w, c)
    normed_TE = F.layer_norm(outputs_TE, (HEADS * WIDTH,), weights["norm_weight"], weights["norm_bias"], 1e-6)
    return normed_TE @ weights["o_proj.weight"].T


@pytest.mark.parametrize("length", [1, 4, 18])
def test_same_outputs_as_the_definition(length: int) -> None:
    mixer, x_BTD = random_mixer(), torch.randn(2, length, DIM)
    expected = torch.stack([literally(mixer, x_TD) for x_TD in x_BTD])
    with torch.no_grad():
        ours, _ = mixer.mix(x_BTD, None, None)
    # fp32 against float64: the inner LayerNorms amplify roundings of some units in the last place.
    torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-5)
