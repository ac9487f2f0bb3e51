"""Gated DeltaNet: linear attention that erases what it overwrites and forgets by a gate
(Yang, Kautz & Hatamizadeh 2024; the linear layers of Qwen3-Next).

Per head, S_t = α_t (I − β_t k_t k_tᵀ) S_{t−1} + β_t k_t v_tᵀ and o_t = S_tᵀ q_t. The parallel form solves one
triangular system per chunk (the WY/UT transform) for the values that are really written.

Shapes in names: B batch, T time, D model width, G query/key heads, H value heads, K key width, V value width,
N chunks, L positions of a chunk, C channels under the convolution, Q positions remembered by it.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wenfang.model.linear import Linear
from wenfang.model.memory import State
from wenfang.model.mixers.config import GatedDeltaNetConfig
from wenfang.model.mixers.recurrent import (
    CausalConv,
    RecurrentMixer,
    carry,
    chunked,
    chunked_runs,
    decay,
    runs,
    unchunked,
)


class GatedDeltaNetState(NamedTuple):
    """What a gated DeltaNet layer carries."""

    past_BQC: Tensor
    """Last inputs of the convolution, in the activations' dtype."""
    memory_BHKV: Tensor
    """fp32."""


class GatedDeltaNet(RecurrentMixer):
    """A gated DeltaNet layer.

    Args:
        config: its shape.
        dim: width of the residual stream.
        norm_eps: of the gated output norm.
        layer: its number, under which the memory keeps its state.
    """

    def __init__(self, config: GatedDeltaNetConfig, *, dim: int, norm_eps: float, layer: int) -> None:
        super().__init__(layer)
        self.config, self.norm_eps = config, norm_eps
        self.keys, self.values = config.key_heads * config.key_dim, config.value_heads * config.value_dim
        self.q_proj, self.k_proj = Linear(dim, self.keys), Linear(dim, self.keys)
        self.v_proj = Linear(dim, self.values)
        self.z_proj = Linear(dim, self.values)
        self.beta_proj = Linear(dim, config.value_heads)
        self.alpha_proj = Linear(dim, config.value_heads)
        self.conv1d = CausalConv(2 * self.keys + self.values, config.conv_width, bias=False)
        self.A_log = nn.Parameter(torch.zeros(config.value_heads))
        self.dt_bias = nn.Parameter(torch.ones(config.value_heads))
        self.norm_weight = nn.Parameter(torch.ones(config.value_dim))
        self.o_proj = Linear(self.values, dim)

    @torch.no_grad()
    def initialise(self) -> None:
        """A uniform in 0 … 16, as in Qwen3-Next."""
        self.conv1d.initialise()
        self.A_log.uniform_(0.01, 16.0).log_()
        self.dt_bias.fill_(1.0)
        self.norm_weight.fill_(1.0)

    def mix(self, x_BTD: Tensor, state: State | None, documents_BT: Tensor | None) -> tuple[Tensor, State]:
        past_BQC, memory_BHKV = (None, None) if state is None else state
        runs_BT, config = runs(documents_BT), self.config
        qkv_BTC = torch.cat((self.q_proj(x_BTD), self.k_proj(x_BTD), self.v_proj(x_BTD)), -1)
        channels_BTC, past_BQC = self.conv1d(qkv_BTC, past_BQC, runs_BT)
        q_BTE, k_BTE, v_BTE = channels_BTC.float().split((self.keys, self.keys, self.values), -1)
        repeats = config.value_heads // config.key_heads
        q_BTHK, k_BTHK = (
            _unit(e.unflatten(-1, (config.key_heads, -1))).repeat_interleave(repeats, 2) for e in (q_BTE, k_BTE)
        )
        v_BTHV = v_BTE.unflatten(-1, (config.value_heads, -1))
        beta_BTH = self.beta_proj(x_BTD).float().sigmoid()
        log_BTH = -self.A_log.float().exp() * F.softplus(self.alpha_proj(x_BTD).float() + self.dt_bias.float())
        if memory_BHKV is None:
            memory_BHKV = v_BTHV.new_zeros(len(x_BTD), config.value_heads, config.key_dim, config.value_dim)
        scan = _step if x_BTD.shape[1] == 1 else self._chunks
        q_BTHK = q_BTHK * config.key_dim**-0.5
        o_BTHV, memory_BHKV = scan(q_BTHK, k_BTHK, v_BTHV, beta_BTH, log_BTH, memory_BHKV, runs_BT)
        z_BTHV = self.z_proj(x_BTD).unflatten(-1, (config.value_heads, -1))
        return self.o_proj(self._gated_norm(o_BTHV, z_BTHV).flatten(-2)), GatedDeltaNetState(past_BQC, memory_BHKV)

    def _chunks(
        self,
        q_BTHK: Tensor,
        k_BTHK: Tensor,
        v_BTHV: Tensor,
        beta_BTH: Tensor,
        log_BTH: Tensor,
        memory_BHKV: Tensor,
        runs_BT: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """o_BTHV and the state after the last position."""
        T, size = q_BTHK.shape[1], min(self.config.chunk, q_BTHK.shape[1])
        runs_BNL = chunked_runs(runs_BT, size)
        q_BHNLK, k_BHNLK, v_BHNLV = (chunked(e, size).permute(0, 3, 1, 2, 4) for e in (q_BTHK, k_BTHK, v_BTHV))
        log_BHNL, beta_BHNL = (chunked(e, size).permute(0, 3, 1, 2) for e in (log_BTH, beta_BTH))
        decays = decay(log_BHNL, runs_BNL)
        keys_BHNKL = k_BHNLK.transpose(-1, -2)
        betas_BHNL1 = beta_BHNL[..., None]
        system_BHNLL = (betas_BHNL1 * k_BHNLK) @ keys_BHNKL * decays.pairs_BHNLL
        # What is written at t: u_t = β_t (v_t − what S, decayed to t, holds under k_t) = values + reads · S before.
        right = torch.cat((betas_BHNL1 * v_BHNLV, -(betas_BHNL1 * decays.entry_BHNL[..., None]) * k_BHNLK), -1)
        solved = torch.linalg.solve_triangular(system_BHNLL, right, upper=False, unitriangular=True)
        values_BHNLV, reads_BHNLK = solved.split((v_BHNLV.shape[-1], k_BHNLK.shape[-1]), -1)
        exits_BHNKL = keys_BHNKL * decays.exit_BHNL[..., None, :]
        forget_BHNKK = torch.diag_embed(decays.whole_BHN[..., None].expand(*decays.whole_BHN.shape, q_BTHK.shape[-1]))
        memories_BHNKV, memory_BHKV = carry(
            forget_BHNKK + exits_BHNKL @ reads_BHNLK, exits_BHNKL @ values_BHNLV, memory_BHKV
        )
        written_BHNLV = values_BHNLV + reads_BHNLK @ memories_BHNKV
        scores_BHNLL = q_BHNLK @ keys_BHNKL * decays.pairs_BHNLL
        o_BHNLV = (q_BHNLK * decays.entry_BHNL[..., None]) @ memories_BHNKV + scores_BHNLL @ written_BHNLV
        return unchunked(o_BHNLV, T), memory_BHKV

    def _gated_norm(self, o_BTHV: Tensor, z_BTHV: Tensor) -> Tensor:
        """RMSNorm of each head, then · silu(z)."""
        o_BTHV = o_BTHV * torch.rsqrt(o_BTHV.square().mean(-1, keepdim=True) + self.norm_eps)
        o_BTHV = o_BTHV.to(z_BTHV.dtype) * self.norm_weight.to(z_BTHV.dtype)
        return (o_BTHV * F.silu(z_BTHV.float())).to(z_BTHV.dtype)


def _unit(x: Tensor) -> Tensor:
    """x scaled to length one over the last dimension; the 1e-6 is the reference implementation's."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def _step(
    q_B1HK: Tensor,
    k_B1HK: Tensor,
    v_B1HV: Tensor,
    beta_B1H: Tensor,
    log_B1H: Tensor,
    memory_BHKV: Tensor,
    _runs: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The recurrence for one position."""
    memory_BHKV = memory_BHKV * log_B1H[:, 0, :, None, None].exp()
    held_BHV = (memory_BHKV * k_B1HK[:, 0, :, :, None]).sum(2)
    written_BHV = (v_B1HV[:, 0] - held_BHV) * beta_B1H[:, 0, :, None]
    memory_BHKV = memory_BHKV + k_B1HK[:, 0, :, :, None] * written_BHV[:, :, None]
    return (memory_BHKV * q_B1HK[:, 0, :, :, None]).sum(2)[:, None], memory_BHKV
