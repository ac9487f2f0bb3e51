"""RWKV-7's time mix (Peng et al. 2025, "RWKV-7 Goose with Expressive Dynamic State Evolution").

Per head, S_t = (diag(w_t) − (a_t ⊙ κ_t) κ_tᵀ) S_{t−1} + k_t v_tᵀ and o_t = S_tᵀ r_t, with a decay w_t per channel, a
removal key κ_t of length one and an in-context learning rate a_t. The parallel form solves one triangular system per
chunk, as for the delta rule. Every layer but the first mixes its values with the first one's.

Shapes in names: B batch, T time, D model width, E inner width, H heads, K head width (of keys and of values), N chunks,
L positions of a chunk.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wenfang.model.config import DecoderConfig
from wenfang.model.feedforward import FeedForward
from wenfang.model.linear import Linear
from wenfang.model.memory import Memory, State
from wenfang.model.mixers.config import Rwkv7Config
from wenfang.model.mixers.recurrent import (
    RecurrentMixer,
    carry,
    chunked,
    chunked_runs,
    lagged,
    reach,
    runs,
    unchunked,
    within,
)

LOG_STRONGEST = -0.6065306597126334
"""The logarithm of the strongest decay, −e^(−1/2)."""


SHIFTED = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}
"""What is computed from inputs mixed with the position before, and how the fresh mix grows over the channels."""


class Rwkv7State(NamedTuple):
    """What an RWKV-7 time mix carries."""

    past_B1D: Tensor
    """The last input, in the activations' dtype."""
    memory_BHKK: Tensor
    """Keys × values, fp32."""


class LowRank(nn.Module):
    """bias + activation(x · down) · up."""

    def __init__(self, inputs: int, rank: int, outputs: int, activation: nn.Module, *, bias: bool = True) -> None:
        super().__init__()
        self.down, self.activation, self.up = Linear(inputs, rank), activation, Linear(rank, outputs)
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.activation(self.down(x)))
        return y if self.bias is None else y + self.bias.to(x.dtype)

    @torch.no_grad()
    def initialise(self, bias: Tensor | None = None) -> None:
        """Begin as the bias alone."""
        self.down.weight.zero_()
        self.up.weight.normal_(0.0, 0.1 * self.up.in_features**-0.5)
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)


class Rwkv7(RecurrentMixer):
    """An RWKV-7 time mix.

    Args:
        config: its shape.
        dim: width of the residual stream.
        layer: its number, under which the memory keeps its state.
        layers: of the whole decoder, which the fresh weights depend on.
        first: whether it is the decoder's first RWKV-7 layer, whose values the others mix in.
    """

    def __init__(self, config: Rwkv7Config, *, dim: int, layer: int, layers: int, first: bool) -> None:
        super().__init__(layer)
        self.config, self.dim, self.layer, self.layers, self.first = config, dim, layer, layers, first
        inner = config.heads * config.head_dim
        self.shifts = nn.ParameterDict({name: torch.zeros(dim) for name in SHIFTED})
        self.r_proj, self.k_proj, self.v_proj = (Linear(dim, inner) for _ in range(3))
        self.decay = LowRank(dim, config.decay_rank, inner, nn.Tanh())
        self.rate = LowRank(dim, config.rate_rank, inner, nn.Identity())
        self.value = None if first else LowRank(dim, config.value_rank, inner, nn.Identity())
        self.gate = LowRank(dim, config.gate_rank, inner, nn.Sigmoid(), bias=False)
        self.k_k, self.k_a = nn.Parameter(torch.zeros(inner)), nn.Parameter(torch.zeros(inner))
        self.r_k = nn.Parameter(torch.zeros(config.heads, config.head_dim))
        self.norm_weight, self.norm_bias = nn.Parameter(torch.ones(inner)), nn.Parameter(torch.zeros(inner))
        self.o_proj = Linear(inner, dim)

    @torch.no_grad()
    def initialise(self) -> None:
        """Token shift, decay and rates graded over channels and depth, as in the authors' training code."""
        depth, rest = self.layer / max(self.layers - 1, 1), 1.0 - self.layer / self.layers
        share_D = torch.arange(self.dim) / self.dim
        for name, power in SHIFTED.items():
            self.shifts[name].copy_(1.0 - share_D ** (power * rest))
        line_E = torch.linspace(0.0, 1.0, len(self.k_k))
        head_K = torch.linspace(-1.0, 1.0, self.config.head_dim)
        zigzag_E = (head_K * head_K.abs()).repeat(self.config.heads)
        self.decay.initialise(-5.5 + 6.0 * line_E ** (1.0 + depth**0.3) + 2.5 * zigzag_E)
        self.rate.initialise(-0.19 + 0.3 * zigzag_E + 0.4 * (line_E - 0.5))
        if self.value is not None:
            self.value.initialise(0.73 - 0.4 * (line_E - 0.5))
        self.gate.initialise()
        self.k_proj.weight.normal_(0.0, 0.1 * self.dim**-0.5)
        self.k_k.copy_(0.71 - 0.1 * (line_E - 0.5))
        self.k_a.fill_(1.02)
        self.r_k.fill_(-0.04)
        self.norm_weight.fill_(((1 + self.layer) / self.layers) ** 0.7)
        self.norm_bias.zero_()

    def forward(self, x_BTD: Tensor, memory: Memory, _rotation: object = None) -> Tensor:
        y_BTD, state, first_BTE = self.mix_values(
            x_BTD, memory.recall(self.place), memory.documents_BT, memory.first_values_BTE
        )
        memory.keep(self.place, state)
        memory.first_values_BTE = first_BTE
        return y_BTD

    def mix(self, x_BTD: Tensor, state: State | None, documents_BT: Tensor | None) -> tuple[Tensor, State]:
        return self.mix_values(x_BTD, state, documents_BT, None)[:2]

    def mix_values(
        self, x_BTD: Tensor, state: State | None, documents_BT: Tensor | None, first_BTE: Tensor | None
    ) -> tuple[Tensor, State, Tensor]:
        """As `mix`, with the first layer's values going in (None there) and coming out."""
        past_B1D, memory_BHKK = (None, None) if state is None else state
        runs_BT, heads = runs(documents_BT), self.config.heads
        (before_BTD, _), past_B1D = lagged(x_BTD, past_B1D, 1, runs_BT)
        delta_BTD = before_BTD - x_BTD
        xr, xw, xk, xv, xa, xg = (x_BTD + delta_BTD * self.shifts[name].to(x_BTD.dtype) for name in SHIFTED)
        r_BTE, k_BTE, v_BTE = self.r_proj(xr), self.k_proj(xk), self.v_proj(xv)
        first_BTE = v_BTE if self.first or first_BTE is None else first_BTE
        if self.value is not None:
            v_BTE = torch.lerp(v_BTE, first_BTE, self.value(xv).sigmoid())
        log_BTE = LOG_STRONGEST * self.decay(xw).float().sigmoid()
        rate_BTE = self.rate(xa).float().sigmoid()
        r_BTHK, v_BTHK, log_BTHK, rate_BTHK = (
            e.float().unflatten(-1, (heads, -1)) for e in (r_BTE, v_BTE, log_BTE, rate_BTE)
        )
        removed_BTHK = F.normalize((k_BTE.float() * self.k_k.float()).unflatten(-1, (heads, -1)), dim=-1)
        k_BTHK = (k_BTE.float() * (1 + (rate_BTE - 1) * self.k_a.float())).unflatten(-1, (heads, -1))
        if memory_BHKK is None:
            memory_BHKK = k_BTHK.new_zeros(len(x_BTD), heads, self.config.head_dim, self.config.head_dim)
        scan = _step if x_BTD.shape[1] == 1 else self._chunks
        o_BTHK, memory_BHKK = scan(
            r_BTHK, log_BTHK, k_BTHK, v_BTHK, -removed_BTHK, removed_BTHK * rate_BTHK, memory_BHKK, runs_BT
        )
        o_BTE = self._normed(o_BTHK)
        bonus_BTH1 = (r_BTHK * k_BTHK * self.r_k.float()).sum(-1, keepdim=True)
        o_BTE = (o_BTE + (bonus_BTH1 * v_BTHK).flatten(-2)).to(x_BTD.dtype) * self.gate(xg)
        return self.o_proj(o_BTE), Rwkv7State(past_B1D, memory_BHKK), first_BTE

    def _chunks(
        self,
        r_BTHK: Tensor,
        log_BTHK: Tensor,
        k_BTHK: Tensor,
        v_BTHK: Tensor,
        a_BTHK: Tensor,
        b_BTHK: Tensor,
        memory_BHKK: Tensor,
        runs_BT: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """o_BTHK and the state after the last position, for S_t = (diag(w_t) + b_t a_tᵀ) S_{t−1} + k_t v_tᵀ."""
        T, size = r_BTHK.shape[1], min(self.config.chunk, r_BTHK.shape[1])
        r, log, k, v, a, b = (
            chunked(e, size).permute(0, 3, 1, 2, 4) for e in (r_BTHK, log_BTHK, k_BTHK, v_BTHK, a_BTHK, b_BTHK)
        )
        masks = reach(chunked_runs(runs_BT, size), size, r.device)
        # Decays are bounded, so that products between positions may be split into a factor for each of the two.
        sums = log.cumsum(-2)
        grown, ends = (-sums).exp(), (sums[..., -1:, :] - sums).exp()
        reading, asking = r * sums.exp(), a * (sums - log).exp()
        sources = torch.cat((b * grown, k * grown), -2).transpose(-1, -2)
        seen_BNLL = masks.seen_BNLL[:, None]
        reads_bk = (reading @ sources).unflatten(-1, (2, -1)).masked_fill(~seen_BNLL[..., None, :], 0.0)
        asks_bk = (asking @ sources).unflatten(-1, (2, -1)).masked_fill(~seen_BNLL.tril(-1)[..., None, :], 0.0)
        reading, asking = (within(e, masks.entry_BNL) for e in (reading, asking))
        ends, whole = within(ends, masks.exit_BNL), within(sums[..., -1, :].exp(), masks.whole_BN)
        # What a_t finds in S, decayed to t − 1: u_t = values + asked · S before the chunk.
        right = torch.cat((asks_bk[..., 1, :] @ v, asking), -1)
        solved = torch.linalg.solve_triangular(-asks_bk[..., 0, :], right, upper=False, unitriangular=True)
        values, asked = solved.chunk(2, -1)
        b_ends, k_ends = (b * ends).transpose(-1, -2), (k * ends).transpose(-1, -2)
        memories, memory_BHKK = carry(
            torch.diag_embed(whole) + b_ends @ asked, b_ends @ values + k_ends @ v, memory_BHKK
        )
        found = values + asked @ memories
        o = reading @ memories + reads_bk[..., 0, :] @ found + reads_bk[..., 1, :] @ v
        return unchunked(o, T), memory_BHKK

    def _normed(self, o_BTHK: Tensor) -> Tensor:
        """Each head's output with mean 0 and variance 1, then a weight and a bias per channel: o_BTE."""
        o_BTE = F.layer_norm(o_BTHK, o_BTHK.shape[-1:], eps=self.config.norm_eps).flatten(-2)
        return o_BTE * self.norm_weight.float() + self.norm_bias.float()


class ShiftedFeedForward(FeedForward):
    """A feed-forward that reads each position mixed with the one before (RWKV's channel mix)."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__(config, config.hidden)
        self.place, self.rest = f"{layer}.mlp", 1.0 - layer / config.layers
        self.shift = nn.Parameter(torch.zeros(config.dim))

    @torch.no_grad()
    def initialise(self) -> None:
        """The mix graded over channels and depth, as in the authors' training code."""
        self.shift.copy_(1.0 - (torch.arange(len(self.shift)) / len(self.shift)) ** self.rest**4)

    def forward(self, x_BTD: Tensor, memory: Memory) -> Tensor:
        state = memory.recall(self.place)
        past_B1D = None if state is None else state[0]
        (before_BTD, _), past_B1D = lagged(x_BTD, past_B1D, 1, runs(memory.documents_BT))
        memory.keep(self.place, (past_B1D,))
        return super().forward(x_BTD + (before_BTD - x_BTD) * self.shift.to(x_BTD.dtype), memory)


def _step(
    r_B1HK: Tensor,
    log_B1HK: Tensor,
    k_B1HK: Tensor,
    v_B1HK: Tensor,
    a_B1HK: Tensor,
    b_B1HK: Tensor,
    memory_BHKK: Tensor,
    _runs: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The recurrence for one position."""
    r, log, k, v, a, b = (e[:, 0] for e in (r_B1HK, log_B1HK, k_B1HK, v_B1HK, a_B1HK, b_B1HK))
    found_BHK = (a[..., None] * memory_BHKK).sum(2)
    memory_BHKK = (
        memory_BHKK * log.exp()[..., None] + b[..., None] * found_BHK[:, :, None] + k[..., None] * v[:, :, None]
    )
    return (r[..., None] * memory_BHKK).sum(2)[:, None], memory_BHKK
