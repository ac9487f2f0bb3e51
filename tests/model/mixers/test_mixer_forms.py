"""Every recurrent mixer: its parallel form, its recurrent form, and packed documents, against one another."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from wenfang.model.mixers.config import GatedDeltaNetConfig, Mamba2Config, Rwkv7Config, TttConfig
from wenfang.model.mixers.gated_deltanet import GatedDeltaNet
from wenfang.model.mixers.mamba2 import Mamba2
from wenfang.model.mixers.recurrent import RecurrentMixer
from wenfang.model.mixers.rwkv7 import Rwkv7
from wenfang.model.mixers.ttt import Ttt

DIM, LENGTH = 20, 29
"""Odd on purpose: no size divides another, and the length is no multiple of a chunk."""


def mamba2() -> RecurrentMixer:
    config = Mamba2Config(heads=6, head_dim=5, state_dim=7, groups=3, conv_width=4, chunk=8)
    return Mamba2(config, dim=DIM, norm_eps=1e-5, layer=1)


def gated_deltanet() -> RecurrentMixer:
    config = GatedDeltaNetConfig(key_heads=2, value_heads=4, key_dim=6, value_dim=5, conv_width=3, chunk=8)
    return GatedDeltaNet(config, dim=DIM, norm_eps=1e-5, layer=1)


def rwkv7() -> RecurrentMixer:
    config = Rwkv7Config(heads=3, head_dim=8, decay_rank=4, rate_rank=3, value_rank=2, gate_rank=5, chunk=8)
    return Rwkv7(config, dim=DIM, layer=0, layers=3, first=True)


def ttt() -> RecurrentMixer:
    return Ttt(TttConfig(heads=3, head_dim=6, mini_batch=5), dim=DIM, layer=1)


MIXERS = [mamba2, gated_deltanet, rwkv7, ttt]
all_mixers = pytest.mark.parametrize("make", MIXERS, ids=[make.__name__ for make in MIXERS])

# The forms sum the same terms in another order: a few units in the last place of outputs near 1.
CLOSE = {"rtol": 1e-5, "atol": 3e-6}


def random_mixer(make: Callable[[], RecurrentMixer]) -> RecurrentMixer:
    torch.manual_seed(3)
    mixer = make()
    mixer.initialise()
    with torch.no_grad():
        for weight in mixer.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return mixer


def in_pieces(mixer: RecurrentMixer, x_BTD: Tensor, sizes: list[int]) -> Tensor:
    state, outputs = None, []
    for x_BSD in x_BTD.split(sizes, 1):
        y_BSD, state = mixer.mix(x_BSD, state, None)
        outputs.append(y_BSD)
    return torch.cat(outputs, 1)


@all_mixers
def test_recurrent_and_parallel_forms_agree(make: Callable[[], RecurrentMixer]) -> None:
    mixer, x_BTD = random_mixer(make), torch.randn(2, LENGTH, DIM)
    with torch.no_grad():
        parallel, _ = mixer.mix(x_BTD, None, None)
        recurrent = in_pieces(mixer, x_BTD, [1] * LENGTH)
    assert parallel.abs().max() > 0.1
    torch.testing.assert_close(recurrent, parallel, **CLOSE)


@all_mixers
def test_a_sequence_may_be_split_anywhere(make: Callable[[], RecurrentMixer]) -> None:
    mixer, x_BTD = random_mixer(make), torch.randn(2, LENGTH, DIM)
    with torch.no_grad():
        whole, state = mixer.mix(x_BTD, None, None)
        for cut in (1, 4, 8, 15, 16, LENGTH - 1):
            torch.testing.assert_close(in_pieces(mixer, x_BTD, [cut, LENGTH - cut]), whole, **CLOSE)
        _, first = mixer.mix(x_BTD[:, :11], None, None)
        _, second = mixer.mix(x_BTD[:, 11:], first, None)
    for ours, expected in zip(second, state, strict=True):
        torch.testing.assert_close(ours, expected, **CLOSE)


@all_mixers
def test_packed_documents_equal_documents_alone(make: Callable[[], RecurrentMixer]) -> None:
    mixer, x_BTD = random_mixer(make), torch.randn(2, LENGTH, DIM)
    lengths = [[9, 1, 2, 14, 3], [1, 28]]  # Borders inside chunks, several in one, none for long.
    documents_BT = torch.tensor([[n for n, length in enumerate(row) for _ in range(length)] for row in lengths])
    documents_BT[0, -3:] = -1
    with torch.no_grad():
        packed, state = mixer.mix(x_BTD, None, documents_BT)
        for row, sizes in enumerate(lengths):
            pieces = x_BTD[row : row + 1].split(sizes, 1)
            alone = torch.cat([mixer.mix(piece, None, None)[0] for piece in pieces], 1)
            torch.testing.assert_close(packed[row : row + 1], alone, **CLOSE)
            _, last = mixer.mix(pieces[-1], None, None)
            for kept, expected in zip(state, last, strict=True):
                torch.testing.assert_close(kept[row : row + 1], expected, **CLOSE)


@all_mixers
def test_a_packed_row_continues_the_state_in_its_first_document_only(make: Callable[[], RecurrentMixer]) -> None:
    mixer, x_BTD = random_mixer(make), torch.randn(1, LENGTH, DIM)
    with torch.no_grad():
        expected = mixer.mix(x_BTD[:, :17], None, None)[0], mixer.mix(x_BTD[:, 17:], None, None)[0]
        _, state = mixer.mix(x_BTD[:, :7], None, None)
        documents_BT = torch.tensor([[4] * 10 + [7] * (LENGTH - 17)])
        continued, _ = mixer.mix(x_BTD[:, 7:], state, documents_BT)
    torch.testing.assert_close(continued, torch.cat((expected[0][:, 7:], expected[1]), 1), **CLOSE)


@all_mixers
def test_gradients_of_the_parallel_form_are_those_of_the_recurrence(make: Callable[[], RecurrentMixer]) -> None:
    mixer, x_BTD = random_mixer(make), torch.randn(2, LENGTH, DIM, requires_grad=True)
    weights = [x_BTD, *(weight for weight in mixer.parameters())]
    scale_BTD = torch.randn(2, LENGTH, DIM)
    parallel = torch.autograd.grad((mixer.mix(x_BTD, None, None)[0] * scale_BTD).sum(), weights)
    recurrent = torch.autograd.grad((in_pieces(mixer, x_BTD, [1] * LENGTH) * scale_BTD).sum(), weights)
    for ours, expected in zip(parallel, recurrent, strict=True):
        # fp32 sums over every position and path: compared on the scale of each gradient's largest entry.
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=2e-5 * float(expected.abs().max()))


@all_mixers
def test_strong_inputs_stay_finite(make: Callable[[], RecurrentMixer]) -> None:
    mixer = random_mixer(make)
    x_BTD = 100 * torch.randn(1, LENGTH, DIM)
    x_BTD.requires_grad_()
    y_BTD, _ = mixer.mix(x_BTD, None, torch.tensor([[0] * 5 + [1] * (LENGTH - 5)]))
    (gradient,) = torch.autograd.grad(y_BTD.square().sum(), x_BTD)
    assert y_BTD.isfinite().all()
    assert gradient.isfinite().all()


@all_mixers
def test_it_traces_as_one_graph(make: Callable[[], RecurrentMixer]) -> None:
    mixer, x_BTD = random_mixer(make), torch.randn(2, LENGTH, DIM)
    documents_BT = torch.arange(LENGTH).expand(2, -1) // 10
    traced = torch.compile(lambda x, documents: mixer.mix(x, None, documents)[0], backend="eager", fullgraph=True)
    torch.testing.assert_close(traced(x_BTD, documents_BT), mixer.mix(x_BTD, None, documents_BT)[0])


@all_mixers
def test_bf16_stays_near_fp32(make: Callable[[], RecurrentMixer]) -> None:
    mixer, x_BTD = random_mixer(make), torch.randn(2, LENGTH, DIM)
    with torch.no_grad():
        exact, _ = mixer.mix(x_BTD, None, None)
        coarse, _ = mixer.mix(x_BTD.bfloat16(), None, None)
    assert coarse.dtype == torch.bfloat16
    # bf16 keeps 8 bits; by far most outputs stay within some roundings, which head norms may amplify.
    assert (coarse.float() - exact).norm() < 0.1 * exact.norm()
