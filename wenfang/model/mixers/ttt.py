"""TTT-Linear: the state is a linear model that learns while it reads (Sun et al. 2024, "Learning to (Learn at Test
Time)"; the layer of their Transformer backbone).

Per head, the inner model f(x; W, c) = x + LN(xW + c) learns to map keys to values: its loss at position s is
½‖f(k_s) − v_s‖², and o_t = f(q_t; W_t, c_t). Gradients of a mini-batch are all taken at the weights before it;
W_t = W − τ_i Σ_{s ≤ t} η_s ∇_s over the mini-batch up to t, where i is t's place in it, η_s a learned rate and τ_i a
learned scale near 1/(i + 1) (the authors' code). The sums over s are products of matrices (the paper's dual form), so
the parallel form loops over mini-batches only, and the recurrent form keeps the weights and the running gradient.

Shapes in names: B batch, T time, D model width, H heads, K head width, J = K + 1 (the bias c is W's last row, against a
1 at the end of each key and query), N chunks, L positions of a chunk (a mini-batch long, but aligned to the row).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wenfang.model.linear import Linear
from wenfang.model.memory import State
from wenfang.model.mixers.config import TttConfig
from wenfang.model.mixers.recurrent import RecurrentMixer, chunked_numbers, runs
from wenfang.model.parts import RopeConfig
from wenfang.model.position import rotate, rotation

NORM_EPS = 1e-6


class TttState(NamedTuple):
    """What a TTT layer carries."""

    weights_BHJK: Tensor
    """Inner weights before the running mini-batch, fp32."""
    gradient_BHJK: Tensor
    """Sum of its gradients so far, each times its rate, fp32."""
    read_B: Tensor
    """Positions read since the beginning, int64."""


class _Places(NamedTuple):
    """Where each position stands among the mini-batches of its document."""

    number_BT: Tensor
    """Position within the document."""
    batch_BT: Tensor
    """Number of its mini-batch in the row; the one that the state continues is 0."""


class _Chunk(NamedTuple):
    """A stretch of positions no longer than a mini-batch."""

    q_BHLJ: Tensor
    k_BHLJ: Tensor
    target_BHLK: Tensor
    """What LN shall give for the key."""
    rates_BHL1: Tensor
    number_BL: Tensor
    batch_BL: Tensor


class _Learner(NamedTuple):
    """The inner model between two chunks."""

    weights_BHJK: Tensor
    gradient_BHJK: Tensor
    running_B: Tensor
    """Number of the running mini-batch."""


class Ttt(RecurrentMixer):
    """A TTT-Linear layer.

    Args:
        config: its shape.
        dim: width of the residual stream.
        layer: its number, under which the memory keeps its state.
    """

    def __init__(self, config: TttConfig, *, dim: int, layer: int) -> None:
        super().__init__(layer)
        self.config = config
        self.rope = RopeConfig(theta=config.rope_theta)
        heads, width = config.heads, config.head_dim
        self.q_proj, self.k_proj, self.v_proj = (Linear(dim, heads * width) for _ in range(3))
        self.rate_proj = Linear(dim, heads)
        self.rate_bias = nn.Parameter(torch.zeros(heads))
        self.place_scale = nn.Parameter(torch.zeros(config.mini_batch))
        self.inner_weight = nn.Parameter(torch.zeros(heads, width, width))
        self.inner_bias = nn.Parameter(torch.zeros(heads, 1, width))
        self.inner_norm_weight = nn.Parameter(torch.ones(heads, 1, width))
        self.inner_norm_bias = nn.Parameter(torch.zeros(heads, 1, width))
        self.norm_weight, self.norm_bias = (
            nn.Parameter(torch.ones(heads * width)),
            nn.Parameter(torch.zeros(heads * width)),
        )
        self.o_proj = Linear(heads * width, dim)

    @torch.no_grad()
    def initialise(self) -> None:
        """N(0, 0.02²) inner weights and rates, as in the authors' code."""
        self.inner_weight.normal_(0.0, 0.02)
        self.rate_proj.weight.normal_(0.0, 0.02)
        for zero in (self.rate_bias, self.place_scale, self.inner_bias, self.inner_norm_bias, self.norm_bias):
            zero.zero_()
        for one in (self.inner_norm_weight, self.norm_weight):
            one.fill_(1.0)

    def mix(self, x_BTD: Tensor, state: State | None, documents_BT: Tensor | None) -> tuple[Tensor, State]:
        B, T, _ = x_BTD.shape
        start_HJK = torch.cat((self.inner_weight, self.inner_bias), 1).float()
        if state is None:
            weights_BHJK = start_HJK.expand(B, -1, -1, -1)
            state = TttState(weights_BHJK, torch.zeros_like(weights_BHJK), x_BTD.new_zeros(B, dtype=torch.int64))
        runs_BT = runs(documents_BT)
        places = self._places(state[2], runs_BT, T)
        turn = rotation(self.rope, self.config.head_dim, places.number_BT % self.config.mini_batch, torch.float32)
        q_BHTK, k_BHTK, v_BHTK = (
            proj(x_BTD).float().unflatten(-1, (self.config.heads, -1)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q_BHTK, k_BHTK = rotate(q_BHTK, turn), rotate(k_BHTK, turn)
        rates_BTH = (self.rate_proj(x_BTD) + self.rate_bias.to(x_BTD.dtype)).float().sigmoid()
        rates_BHT = rates_BTH.transpose(1, 2) * (self.config.learning_rate / self.config.head_dim)
        o_BHTK, state = self._learn(q_BHTK, k_BHTK, v_BHTK, rates_BHT, places, state, start_HJK)
        o_BTE = o_BHTK.transpose(1, 2).flatten(-2)
        o_BTE = F.layer_norm(o_BTE, o_BTE.shape[-1:], self.norm_weight.float(), self.norm_bias.float(), NORM_EPS)
        return self.o_proj(o_BTE.to(x_BTD.dtype)), state

    def _places(self, read_B: Tensor, runs_BT: Tensor | None, positions: int) -> _Places:
        index_1T = torch.arange(positions, device=read_B.device)[None]
        number_BT = index_1T + read_B[:, None]
        if runs_BT is not None:
            fresh_BT = F.pad(runs_BT.diff(dim=1), (1, 0)) > 0
            starts_BT = torch.where(fresh_BT, index_1T, 0).cummax(1).values
            number_BT = torch.where(runs_BT == 0, number_BT, index_1T - starts_BT)
        return _Places(number_BT, (number_BT % self.config.mini_batch == 0).cumsum(1))

    def _learn(
        self,
        q_BHTK: Tensor,
        k_BHTK: Tensor,
        v_BHTK: Tensor,
        rates_BHT: Tensor,
        places: _Places,
        state: State,
        start_HJK: Tensor,
    ) -> tuple[Tensor, TttState]:
        """o_BHTK and the state after the last position."""
        T = q_BHTK.shape[2]
        size = min(self.config.mini_batch, T)
        tokens = (
            F.pad(q_BHTK, (0, 1), value=1.0),
            F.pad(k_BHTK, (0, 1), value=1.0),
            v_BHTK - k_BHTK,
            rates_BHT[..., None],
        )
        chunks = (F.pad(e, (0, 0, 0, -T % size)).unflatten(2, (-1, size)).unbind(2) for e in tokens)
        numbers = (chunked_numbers(e, size).unbind(1) for e in places)
        learner = _Learner(state[0], state[1], torch.zeros_like(places.number_BT[:, 0]))
        outputs = []
        for chunk in zip(*chunks, *numbers, strict=True):
            o_BHLK, learner = self._chunk(_Chunk(*chunk), learner, start_HJK)
            outputs.append(o_BHLK)
        o_BHTK = q_BHTK + torch.cat(outputs, 2)[:, :, :T]
        return o_BHTK, TttState(learner.weights_BHJK, learner.gradient_BHJK, places.number_BT[:, -1] + 1)

    def _chunk(self, chunk: _Chunk, learner: _Learner, start_HJK: Tensor) -> tuple[Tensor, _Learner]:
        """LN of the inner model's outputs, and the learner after the chunk.

        A chunk is no longer than a mini-batch, so each position is of one of three kinds: it continues the
        mini-batch that was running before, it opens a document, or it lies in the one mini-batch that follows.
        """
        q_BHLJ, k_BHLJ, target_BHLK, rates_BHL1, number_BL, batch_BL = chunk
        weights_BHJK, gradient_BHJK, running_B = learner
        size = self.config.mini_batch
        scales_P = (1.0 / torch.arange(1, size + 1, device=q_BHLJ.device) + self.place_scale.float()).clamp_min(0.0)
        scales_B1L1 = scales_P[number_BL % size][:, None, :, None]
        continues_B1L1 = (batch_BL == running_B[:, None])[:, None, :, None]
        opens_B1L1 = (number_BL < size)[:, None, :, None] & ~continues_B1L1
        follows_B1L1 = ~(continues_B1L1 | opens_B1L1)

        known_BHLK = torch.where(opens_B1L1, k_BHLJ @ start_HJK, k_BHLJ @ weights_BHJK)
        steps_BHLK = self._slope(known_BHLK, target_BHLK) * rates_BHL1
        done_BHJK = gradient_BHJK + k_BHLJ.transpose(-1, -2) @ (steps_BHLK * continues_B1L1)
        next_BHJK = weights_BHJK - scales_P[-1] * done_BHJK
        later_BHLK = self._slope(k_BHLJ @ next_BHJK, target_BHLK) * rates_BHL1
        steps_BHLK = torch.where(follows_B1L1, later_BHLK, steps_BHLK)

        continued_BHLK = q_BHLJ @ weights_BHJK - scales_B1L1 * (q_BHLJ @ gradient_BHJK)
        z_BHLK = torch.where(continues_B1L1, continued_BHLK, q_BHLJ @ next_BHJK)
        z_BHLK = torch.where(opens_B1L1, q_BHLJ @ start_HJK, z_BHLK)
        seen_B1LL = (batch_BL[:, :, None] == batch_BL[:, None, :]).tril()[:, None]
        scores_BHLL = (q_BHLJ @ k_BHLJ.transpose(-1, -2)) * seen_B1LL
        z_BHLK = z_BHLK - scales_B1L1 * (scores_BHLL @ steps_BHLK)

        last_BHLK = steps_BHLK * (batch_BL == batch_BL[:, -1:])[:, None, :, None]
        gradient_BHJK = k_BHLJ.transpose(-1, -2) @ last_BHLK + gradient_BHJK * continues_B1L1[:, :, -1:]
        weights_BHJK = torch.where(continues_B1L1[:, :, -1:], weights_BHJK, next_BHJK)
        weights_BHJK = torch.where(opens_B1L1[:, :, -1:], start_HJK, weights_BHJK)
        full_B111 = ((number_BL[:, -1] + 1) % size == 0)[:, None, None, None]
        weights_BHJK = torch.where(full_B111, weights_BHJK - scales_P[-1] * gradient_BHJK, weights_BHJK)
        return self._norm(z_BHLK)[0], _Learner(weights_BHJK, gradient_BHJK * ~full_B111, batch_BL[:, -1])

    def _norm(self, z_BHLK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The inner LayerNorm's output, its input normalised, and 1 / the standard deviation."""
        centred_BHLK = z_BHLK - z_BHLK.mean(-1, keepdim=True)
        inverse_BHL1 = torch.rsqrt(centred_BHLK.square().mean(-1, keepdim=True) + NORM_EPS)
        unit_BHLK = centred_BHLK * inverse_BHL1
        y_BHLK = unit_BHLK * self.inner_norm_weight.float() + self.inner_norm_bias.float()
        return y_BHLK, unit_BHLK, inverse_BHL1

    def _slope(self, z_BHLK: Tensor, target_BHLK: Tensor) -> Tensor:
        """The gradient of ½‖LN(z) − target‖² with respect to z."""
        y_BHLK, unit_BHLK, inverse_BHL1 = self._norm(z_BHLK)
        error_BHLK = (y_BHLK - target_BHLK) * self.inner_norm_weight.float()
        along_BHL1 = (error_BHLK * unit_BHLK).mean(-1, keepdim=True)
        return (error_BHLK - error_BHLK.mean(-1, keepdim=True) - unit_BHLK * along_BHL1) * inverse_BHL1
