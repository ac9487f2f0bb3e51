"""The RWKV-7 time mix against the authors' own inference package (`rwkv` on PyPI); `transformers` has no RWKV-7."""

from types import ModuleType

import pytest
import torch
from torch import Tensor

from wenfang.model.mixers.config import Rwkv7Config
from wenfang.model.mixers.rwkv7 import LowRank, Rwkv7

HEADS, HEAD_DIM, DIM = 3, 8, 24


def random_mixer(layer: int) -> Rwkv7:
    torch.manual_seed(layer)
    config = Rwkv7Config(heads=HEADS, head_dim=HEAD_DIM, decay_rank=4, rate_rank=3, value_rank=2, gate_rank=5, chunk=16)
    mixer = Rwkv7(config, dim=DIM, layer=layer, layers=3, first=layer == 0)
    mixer.initialise()
    with torch.no_grad():
        for weight in mixer.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return mixer


def low_rank(module: LowRank) -> tuple[Tensor, Tensor, Tensor]:
    assert module.bias is not None
    return module.bias, module.down.weight.T, module.up.weight.T


@pytest.mark.parametrize("layer", [0, 2])
def test_same_outputs_as_the_authors(layer: int, official_rwkv: ModuleType) -> None:
    ours, x_TD = random_mixer(layer), torch.randn(41, DIM)
    first_TD, before_D = torch.randn(41, DIM), torch.randn(DIM)
    memory_HKK = torch.randn(HEADS, HEAD_DIM, HEAD_DIM)  # Keys × values here, values × keys there.
    value = (before_D,) * 3 if ours.value is None else low_rank(ours.value)
    with torch.no_grad():
        expected, _, their_memory, their_first = official_rwkv.RWKV_x070_TMix_seq(
            layer, HEADS, HEAD_DIM, x_TD, before_D, first_TD.clone(), memory_HKK.transpose(1, 2),
            *(ours.shifts[name] for name in "rwkvag"),
            *low_rank(ours.decay), *low_rank(ours.rate), *value, ours.gate.down.weight.T, ours.gate.up.weight.T,
            ours.k_k, ours.k_a, ours.r_k.flatten(),
            *(projection.weight.T for projection in (ours.r_proj, ours.k_proj, ours.v_proj, ours.o_proj)),
            ours.norm_weight, ours.norm_bias,
        )  # fmt: skip
        given = None if ours.first else first_TD[None]
        y_1TD, state, first = ours.mix_values(x_TD[None], (before_D[None, None], memory_HKK[None]), None, given)
    # Theirs rounds e^(−1/2) to 0.606531 (5e-7 off), which 41 decays add up.
    torch.testing.assert_close(y_1TD[0], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state[1][0].transpose(1, 2), their_memory, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first[0], their_first, rtol=1e-5, atol=1e-6)
