"""Mamba-2: a selective state-space model with a scalar decay per head (SSD; Dao & Gu 2024, "Transformers are SSMs").

Per head, h_t = exp(Δ_t A) h_{t−1} + Δ_t x_t B_tᵀ and y_t = h_t C_t + D x_t. The parallel form is the paper's block
decomposition (section 6): products inside chunks, and a decay-weighted sum of the chunks' states between them.

Shapes in names: B batch, T time, D model width, H heads, G groups, J heads of a group, P head width, S state width,
N chunks, L positions of a chunk, C channels under the convolution, Q positions remembered by it.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wenfang.model.linear import Linear
from wenfang.model.memory import State
from wenfang.model.mixers.config import Mamba2Config
from wenfang.model.mixers.recurrent import CausalConv, RecurrentMixer, chunked, chunked_runs, decay, runs


class Mamba2State(NamedTuple):
    """What a Mamba-2 layer carries."""

    past_BQC: Tensor
    """Last inputs of the convolution, in the activations' dtype."""
    ssm_BHPS: Tensor
    """fp32."""


class Mamba2(RecurrentMixer):
    """A Mamba-2 layer.

    Args:
        config: its shape.
        dim: width of the residual stream.
        norm_eps: of the gated output norm.
        layer: its number, under which the memory keeps its state.
    """

    def __init__(self, config: Mamba2Config, *, dim: int, norm_eps: float, layer: int) -> None:
        super().__init__(layer)
        self.config, self.norm_eps = config, norm_eps
        self.inner = config.heads * config.head_dim
        self.shared = config.groups * config.state_dim
        channels = self.inner + 2 * self.shared
        self.in_proj = Linear(dim, self.inner + channels + config.heads)
        self.conv1d = CausalConv(channels, config.conv_width, bias=config.conv_bias)
        self.A_log = nn.Parameter(torch.zeros(config.heads))
        self.D = nn.Parameter(torch.ones(config.heads))
        self.dt_bias = nn.Parameter(torch.zeros(config.heads))
        self.norm_weight = nn.Parameter(torch.ones(self.inner))
        self.o_proj = Linear(self.inner, dim)

    @torch.no_grad()
    def initialise(self) -> None:
        """A = −1 … −H; Δ log-uniform in 0.001 … 0.1 (the paper's code)."""
        self.conv1d.initialise()
        self.A_log.copy_(torch.arange(1, self.config.heads + 1).log())
        self.D.fill_(1.0)
        dt_H = torch.empty_like(self.dt_bias).uniform_(math.log(0.001), math.log(0.1)).exp()
        self.dt_bias.copy_(dt_H + (-(-dt_H).expm1()).log())  # The inverse of softplus.
        self.norm_weight.fill_(1.0)

    def mix(self, x_BTD: Tensor, state: State | None, documents_BT: Tensor | None) -> tuple[Tensor, State]:
        past_BQC, ssm_BHPS = (None, None) if state is None else state
        runs_BT = runs(documents_BT)
        sizes = (self.inner, self.inner + 2 * self.shared, self.config.heads)
        z_BTI, channels_BTC, dt_BTH = self.in_proj(x_BTD).split(sizes, -1)
        channels_BTC, past_BQC = self.conv1d(channels_BTC, past_BQC, runs_BT)
        x_BTI, b_BTE, c_BTE = channels_BTC.float().split((self.inner, self.shared, self.shared), -1)
        x_BTHP = x_BTI.unflatten(-1, (self.config.heads, -1))
        b_BTGS, c_BTGS = (e.unflatten(-1, (self.config.groups, -1)) for e in (b_BTE, c_BTE))
        dt_BTH = F.softplus(dt_BTH.float() + self.dt_bias.float())
        log_BTH = -self.A_log.float().exp() * dt_BTH
        if ssm_BHPS is None:
            ssm_BHPS = x_BTHP.new_zeros(len(x_BTD), *x_BTHP.shape[2:], self.config.state_dim)
        scan = _step if x_BTD.shape[1] == 1 else self._chunks
        y_BTHP, ssm_BHPS = scan(x_BTHP * dt_BTH[..., None], b_BTGS, c_BTGS, log_BTH, ssm_BHPS, runs_BT)
        y_BTHP = y_BTHP + x_BTHP * self.D.float()[:, None]
        return self.o_proj(self._gated_norm(y_BTHP.flatten(-2), z_BTI)), Mamba2State(past_BQC, ssm_BHPS)

    def _chunks(
        self, x_BTHP: Tensor, b_BTGS: Tensor, c_BTGS: Tensor, log_BTH: Tensor, ssm_BHPS: Tensor, runs_BT: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """y_BTHP without the skip, and the state after the last position. x comes scaled by Δ."""
        T, size, groups = x_BTHP.shape[1], min(self.config.chunk, x_BTHP.shape[1]), self.config.groups
        runs_BNL = chunked_runs(runs_BT, size)
        x_BNGJLP = chunked(x_BTHP, size).unflatten(3, (groups, -1)).permute(0, 1, 3, 4, 2, 5)
        b_BNGLS, c_BNGLS = (chunked(e, size).transpose(2, 3) for e in (b_BTGS, c_BTGS))
        log_BHNL = chunked(log_BTH, size).permute(0, 3, 1, 2)
        within = decay(log_BHNL, runs_BNL)
        pairs_BNGJLL, entry_BNGJL, exit_BNGJL = (
            factor.transpose(1, 2).unflatten(2, (groups, -1))
            for factor in (within.pairs_BHNLL, within.entry_BHNL, within.exit_BHNL)
        )
        scores_BNG1LL = (c_BNGLS @ b_BNGLS.transpose(-1, -2))[:, :, :, None]
        y_BNGJLP = (scores_BNG1LL * pairs_BNGJLL) @ x_BNGJLP
        writes_BNGJPS = (x_BNGJLP * exit_BNGJL[..., None]).transpose(-1, -2) @ b_BNGLS[:, :, :, None]
        # Chunks decay like positions: the same products, over the sums of whole chunks.
        between = decay(log_BHNL.sum(-1)[:, :, None], None if runs_BNL is None else runs_BNL[:, None, :, -1])
        after_BNHPS = torch.einsum("bhnm,bmhps->bnhps", between.pairs_BHNLL[:, :, 0], writes_BNGJPS.flatten(2, 3))
        after_BNHPS = after_BNHPS + between.entry_BHNL[:, :, 0].transpose(1, 2)[..., None, None] * ssm_BHPS[:, None]
        before_BNGJPS = torch.cat((ssm_BHPS[:, None], after_BNHPS[:, :-1]), 1).unflatten(2, (groups, -1))
        carried_BNGJLP = c_BNGLS[:, :, :, None] @ before_BNGJPS.transpose(-1, -2)
        y_BNGJLP = y_BNGJLP + carried_BNGJLP * entry_BNGJL[..., None]
        y_BTHP = y_BNGJLP.permute(0, 1, 4, 2, 3, 5).flatten(3, 4).flatten(1, 2)[:, :T]
        return y_BTHP, after_BNHPS[:, -1]

    def _gated_norm(self, y_BTI: Tensor, z_BTI: Tensor) -> Tensor:
        """RMSNorm within each group of y · silu(z)."""
        y_BTGE = (y_BTI * F.silu(z_BTI.float())).unflatten(-1, (self.config.groups, -1))
        y_BTGE = y_BTGE * torch.rsqrt(y_BTGE.square().mean(-1, keepdim=True) + self.norm_eps)
        return y_BTGE.flatten(-2).to(z_BTI.dtype) * self.norm_weight.to(z_BTI.dtype)


def _step(
    x_B1HP: Tensor, b_B1GS: Tensor, c_B1GS: Tensor, log_B1H: Tensor, ssm_BHPS: Tensor, _runs: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The recurrence for one position."""
    heads_of_group = x_B1HP.shape[2] // b_B1GS.shape[2]
    b_BHS, c_BHS = (e[:, 0].repeat_interleave(heads_of_group, 1) for e in (b_B1GS, c_B1GS))
    ssm_BHPS = ssm_BHPS * log_B1H[:, 0, :, None, None].exp() + x_B1HP[:, 0, :, :, None] * b_BHS[:, :, None]
    return (ssm_BHPS @ c_BHS[..., None])[..., 0][:, None], ssm_BHPS
