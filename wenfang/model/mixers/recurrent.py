"""What the recurrent mixers share: their place in the decoder, document borders, shifts in time, chunks.

Shapes in names: B batch, T time, D model width, C channels, H heads, N chunks, L positions of a chunk, K key width,
V value width, W convolution width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wenfang.model.memory import Memory, State


class RecurrentMixer(nn.Module):
    """A sequence mixer whose past is a state of fixed size."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.place = f"{layer}.mixer"

    def forward(self, x_BTD: Tensor, memory: Memory, _rotation: object = None) -> Tensor:
        """y_BTD, with the state recalled from and kept in `memory`."""
        y_BTD, state = self.mix(x_BTD, memory.recall(self.place), memory.documents_BT)
        memory.keep(self.place, state)
        return y_BTD

    def mix(self, x_BTD: Tensor, state: State | None, documents_BT: Tensor | None) -> tuple[Tensor, State]:
        """y_BTD and the state after the last position.

        Args:
            x_BTD: one position (recurrent form) or several (parallel form).
            state: what an earlier call returned, None at the beginning; position 0 continues it.
            documents_BT: a number per position; wherever it changes, nothing is carried over.
        """
        raise NotImplementedError

    def initialise(self) -> None:
        """Draw the weights that are not plain projections, as the paper's own code does."""
        raise NotImplementedError


def runs(documents_BT: Tensor | None) -> Tensor | None:
    """Number the stretches of equal document numbers: 0 for the first of each row, then 1, 2, …"""
    if documents_BT is None:
        return None
    borders_BT = documents_BT[:, 1:] != documents_BT[:, :-1]
    return F.pad(borders_BT.cumsum(1), (1, 0))


def lagged(x_BTC: Tensor, past_BPC: Tensor | None, lags: int, runs_BT: Tensor | None) -> tuple[list[Tensor], Tensor]:
    """x as it was `lags`, …, 1, 0 positions before, zero where that lies in another run, and the last `lags`
    positions of x for the next call.

    Args:
        past_BPC: the last `lags` positions before x; None for zeros.
    """
    B, T, C = x_BTC.shape
    past_BPC = x_BTC.new_zeros(B, lags, C) if past_BPC is None else past_BPC
    line = torch.cat((past_BPC, x_BTC), 1)
    views = [line[:, i : i + T] for i in range(lags + 1)]
    if runs_BT is None:
        return views, line[:, T:]
    runs_line = torch.cat((runs_BT[:, :1].expand(-1, lags), runs_BT), 1)
    same = [(runs_line[:, i : i + T] == runs_BT)[..., None] for i in range(lags)]
    kept = line[:, T:] * (runs_line[:, T:] == runs_BT[:, -1:])[..., None]
    return [*(view * mask for view, mask in zip(views, same, strict=False)), x_BTC], kept


class CausalConv(nn.Module):
    """Depthwise convolution over the last W positions, then SiLU.

    Written as W products with shifted inputs: document borders are then masks, and a compiler fuses them.
    """

    def __init__(self, channels: int, width: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, width))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    @torch.no_grad()
    def initialise(self) -> None:
        """Uniform in ±1/√W, as in torch's own convolution; zero bias."""
        bound = self.weight.shape[-1] ** -0.5
        self.weight.uniform_(-bound, bound)
        if self.bias is not None:
            self.bias.zero_()

    def forward(self, x_BTC: Tensor, past_BPC: Tensor | None, runs_BT: Tensor | None) -> tuple[Tensor, Tensor]:
        """y_BTC and the last W − 1 inputs."""
        taps_WC = self.weight[:, 0].t().to(x_BTC.dtype)
        views, past_BPC = lagged(x_BTC, past_BPC, len(taps_WC) - 1, runs_BT)
        y_BTC = views[-1] * taps_WC[-1]
        for view, tap_C in zip(views[:-1], taps_WC, strict=False):
            y_BTC = torch.addcmul(y_BTC, view, tap_C)
        if self.bias is not None:
            y_BTC = y_BTC + self.bias.to(x_BTC.dtype)
        return F.silu(y_BTC), past_BPC


def chunked(x_BT: Tensor, size: int) -> Tensor:
    """x[B, T, …] → x[B, N, L, …] with zeros after the end."""
    T = x_BT.shape[1]
    x_BT = F.pad(x_BT, (0, 0) * (x_BT.ndim - 2) + (0, -T % size))
    return x_BT.unflatten(1, (-1, size))


def unchunked(y_BHNLV: Tensor, positions: int) -> Tensor:
    """y[B, H, N, L, V] → y_BTHV, without the padding after the end."""
    return y_BHNLV.flatten(2, 3)[:, :, :positions].transpose(1, 2)


def chunked_numbers(numbers_BT: Tensor, size: int) -> Tensor:
    """numbers_BNL; the padding after the end repeats the last number."""
    padding_BP = numbers_BT[:, -1:].expand(-1, -numbers_BT.shape[1] % size)
    return torch.cat((numbers_BT, padding_BP), 1).unflatten(1, (-1, size))


def chunked_runs(runs_BT: Tensor | None, size: int) -> Tensor | None:
    """runs_BNL; the padding after the end belongs to the last run, so that the state passes through it."""
    return None if runs_BT is None else chunked_numbers(runs_BT, size)


class Reach(NamedTuple):
    """How far information travels in and around a chunk, as masks; those of documents are None without borders."""

    seen_BNLL: Tensor
    """Position t (row) sees s (column): not later, same run. [1, 1, L, L] without borders."""
    entry_BNL: Tensor | None
    """The state before the chunk reaches this position."""
    exit_BNL: Tensor | None
    """This position reaches the state after the chunk."""
    whole_BN: Tensor | None
    """The state before the chunk reaches the state after it."""


def reach(runs_BNL: Tensor | None, size: int, device: torch.device) -> Reach:
    """The masks of each chunk."""
    causal_LL = torch.ones(size, size, dtype=torch.bool, device=device).tril()
    if runs_BNL is None:
        return Reach(causal_LL[None, None], None, None, None)
    ends_BN1 = runs_BNL[:, :, -1:]
    before_BN1 = F.pad(ends_BN1[:, :-1], (0, 0, 1, 0))
    return Reach(
        causal_LL & (runs_BNL[..., :, None] == runs_BNL[..., None, :]),
        runs_BNL == before_BN1,
        runs_BNL == ends_BN1,
        (ends_BN1 == before_BN1)[..., 0],
    )


def within(x_BHN: Tensor, mask_BN: Tensor | None) -> Tensor:
    """x[B, H, N, …] where the mask[B, N, …] holds, zero elsewhere."""
    if mask_BN is None:
        return x_BHN
    return x_BHN * mask_BN[:, None].reshape(
        len(mask_BN), 1, *mask_BN.shape[1:], *(1,) * (x_BHN.ndim - 1 - mask_BN.ndim)
    )


class Decay(NamedTuple):
    """Products of per-head decays between positions of a chunk; zero where nothing is carried."""

    pairs_BHNLL: Tensor
    """From s (column), exclusive, to t (row), inclusive."""
    entry_BHNL: Tensor
    """From the state before the chunk to each position, inclusive."""
    exit_BHNL: Tensor
    """From each position, exclusive, to the chunk's end."""
    whole_BHN: Tensor
    """Across the chunk."""


def decay(log_BHNL: Tensor, runs_BNL: Tensor | None) -> Decay:
    """Decays of each chunk from the logarithm of each position's decay (≤ 0). Differences are taken before the
    exponential, so that strong decay underflows to zero instead of overflowing."""
    masks = reach(runs_BNL, log_BHNL.shape[-1], log_BHNL.device)
    sums_BHNL = log_BHNL.cumsum(-1)
    ends_BHN1 = sums_BHNL[..., -1:]
    between_BHNLL = sums_BHNL[..., :, None] - sums_BHNL[..., None, :]
    pairs_BHNLL = between_BHNLL.masked_fill(~masks.seen_BNLL[:, None], float("-inf")).exp()
    return Decay(
        pairs_BHNLL,
        within(sums_BHNL.exp(), masks.entry_BNL),
        within((ends_BHN1 - sums_BHNL).exp(), masks.exit_BNL),
        within(ends_BHN1[..., 0].exp(), masks.whole_BN),
    )


def carry(transition_BHNKK: Tensor, write_BHNKV: Tensor, state_BHKV: Tensor) -> tuple[Tensor, Tensor]:
    """The state before each chunk, [B, H, N, K, V], and after the last: S' = transition · S + write."""
    states = []
    for transition_BHKK, write_BHKV in zip(transition_BHNKK.unbind(2), write_BHNKV.unbind(2), strict=True):
        states.append(state_BHKV)
        state_BHKV = transition_BHKK @ state_BHKV + write_BHKV
    return torch.stack(states, 2), state_BHKV
