"""The objective of pretraining and supervised fine-tuning: next-token cross-entropy within each document."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.checkpoint import checkpoint

from wenfang.model import Decoder
from wenfang.model.memory import AttentionSpec, Memory, attention_products
from wenfang.native import can_compute, cross_entropy_
from wenfang.train import flex
from wenfang.train.packing import IGNORED

AHEAD_WEIGHT = 0.3
"""Weight of multi-token prediction beside the next token (DeepSeek-V3 2024, section 4.2)."""
LOGITS_AT_ONCE = {"cpu": 2**24}
"""Logits that exist at one time, by kind of device: on a CPU about what its last cache holds in bf16."""
LOGITS_AT_ONCE_ELSEWHERE = 2**28
"""On a GPU products of few rows would leave most of it idle."""
MOST_PARTS = 16
"""Parts are written out one after another where the step is compiled."""


class _Rows(Memory):
    """Packed rows. On a GPU FlexAttention leaves out what other documents hold. On a CPU where our own kernel cannot
    run, plain products beat torch's fused attention at the length of our rows (docs/log.md, 2026-11-23)."""

    def __init__(self, documents_BT: Tensor, positions_BT: Tensor) -> None:
        super().__init__(documents_BT)
        self._positions_BT = positions_BT
        self._masks: dict[int | None, BlockMask] = {}

    def seen(self, q_BHTK: Tensor) -> Tensor:
        return self._positions_BT

    def attend_masked(self, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTV: Tensor, spec: AttentionSpec) -> Tensor:
        if spec.plain and self.documents_BT is not None and flex.can_attend(q_BHTK, v_BGTV):
            if spec.window not in self._masks:
                self._masks[spec.window] = flex.block_mask(self.documents_BT, spec.window)
            return flex.attention(q_BHTK, k_BGTK, v_BGTV, self._masks[spec.window], spec.scale)
        return attention_products(q_BHTK, k_BGTK, v_BGTV, self.sight(q_BHTK).bias(spec, q_BHTK.dtype), spec)


def cross_entropy_sum(
    model: Decoder,
    ids_BT: Tensor,
    targets_BT: Tensor,
    documents_BT: Tensor,
    positions_BT: Tensor,
    dtype: torch.dtype,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    neighbours_BSNR: Tensor | None = None,
) -> Tensor:
    """Sum of −log p(target) in nats over the positions that count, fp32. Documents in a row never see each other.

    `label_smoothing` ε spreads that share of each target over the vocabulary (Szegedy et al. 2016); `z_loss` adds that
    multiple of log² of the softmax's normaliser (PaLM, Chowdhery et al. 2022). `neighbours_BSNR` are for a decoder that
    reads them (see `wenfang.model.retro`).
    """
    memory = _Rows(documents_BT, positions_BT)
    memory.neighbours_BSNR = neighbours_BSNR
    states_BTD = model.hidden(ids_BT, positions_BT, memory, dtype)
    smooth = Smoothing(label_smoothing, z_loss)
    nats = _nats(model, states_BTD, targets_BT, smooth)
    if torch.is_grad_enabled() and len(model.ahead):
        nats = nats + AHEAD_WEIGHT * _ahead_nats(
            model, states_BTD, ids_BT, targets_BT, documents_BT, positions_BT, memory
        )
    return nats + sum(memory.losses) * (targets_BT != IGNORED).sum() if memory.losses else nats


def _ahead_nats(
    model: Decoder,
    states_BTD: Tensor,
    ids_BT: Tensor,
    targets_BT: Tensor,
    documents_BT: Tensor,
    positions_BT: Tensor,
    memory: Memory,
) -> Tensor:
    """The same sum for the tokens after the next, mean over the depths, within each document."""
    depths_NATS = []
    for depth, ahead_BTD in enumerate(model.look_ahead(states_BTD, ids_BT, positions_BT, memory), start=1):
        same_BT = documents_BT.roll(-depth, 1) == documents_BT
        same_BT[:, -depth:] = False
        later_BT = targets_BT.roll(-depth, 1).masked_fill(~same_BT, IGNORED)
        depths_NATS.append(_nats(model, ahead_BTD, later_BT, Smoothing()))
    return torch.stack(depths_NATS).mean()


class Smoothing(NamedTuple):
    """What is added to −log p(target)."""

    labels: float = 0.0
    """Share of each target spread over the vocabulary."""
    z: float = 0.0
    """Weight of log² of the softmax's normaliser."""


def target_nats(model: Decoder, states_ND: Tensor, targets_N: Tensor) -> Tensor:
    """−log p of each target in nats, [N] fp32; 0 where none counts. For losses that are no sum over positions: logits
    exist part by part, and once more for the gradient, which nobody knows before (Chen et al. 2016)."""

    def nats(states_PD: Tensor, targets_P: Tensor) -> Tensor:
        return F.cross_entropy(model.logits(states_PD).float(), targets_P, ignore_index=IGNORED, reduction="none")

    parts = _parts(states_ND, model.config.vocab_size)
    return torch.cat([checkpoint(nats, states_ND[rows], targets_N[rows], use_reentrant=False) for rows in parts])


def _nats(model: Decoder, states_BTD: Tensor, targets_BT: Tensor, smoothing: Smoothing) -> Tensor:
    """Sum of the loss over the positions that count. All logits never exist at one time, in any format."""
    head, states_ND, targets_N = model.lm_head, states_BTD.flatten(0, 1), targets_BT.flatten()
    if torch.is_grad_enabled():
        sum_nats: Callable[..., Tensor] = _HeadLoss.apply
        return sum_nats(states_ND, head.weight, targets_N, model.config.logit_softcap, smoothing)
    weight_VD = head.weight.to(states_ND.dtype)
    parts = [
        _Part(states_ND[rows] @ weight_VD.T, targets_N[rows], model.config.logit_softcap, smoothing).nats
        for rows in _parts(states_ND, len(weight_VD))
    ]
    return torch.stack(parts).sum()


def _parts(states_ND: Tensor, vocab_size: int) -> list[slice]:
    """Rows whose logits are computed together."""
    count = len(states_ND)
    wanted = LOGITS_AT_ONCE.get(states_ND.device.type, LOGITS_AT_ONCE_ELSEWHERE) // vocab_size
    rows = max(wanted, -(-count // MOST_PARTS))
    return [slice(start, start + rows) for start in range(0, count, rows)]


def _lose(logits_NV: Tensor, targets_N: Tensor, cap: float | None, smoothing: Smoothing) -> tuple[Tensor, Tensor]:
    """What some rows lose in all, and the gradient of that in the logits' format and perhaps in their place."""
    if cap is None and logits_NV.is_contiguous() and can_compute(logits_NV):
        return cross_entropy_(logits_NV, targets_N, *smoothing).sum(), logits_NV
    part = _Part(logits_NV, targets_N, cap, smoothing)
    return part.nats, part.gradient(logits_NV.dtype)


class _Part:
    """Logits of some rows, what they lose, and the gradient of that."""

    def __init__(self, logits_NV: Tensor, targets_N: Tensor, cap: float | None, smoothing: Smoothing) -> None:
        self._smoothing, self._cap = smoothing, cap
        logits_NV = logits_NV.float()
        self._logits_NV = logits_NV if cap is None else (logits_NV / cap).tanh() * cap
        self._learned_N1 = (targets_N != IGNORED)[:, None]
        self._targets_N1 = targets_N.clamp(min=0)[:, None]
        self._normaliser_N1 = self._logits_NV.logsumexp(-1, keepdim=True)

    @property
    def nats(self) -> Tensor:
        """(1 − ε) (Z − l_t) + ε (Z − mean l) + z Z², summed over the rows that count; Z is the normaliser's log."""
        share, z = self._smoothing
        nats_N1 = self._normaliser_N1 - (1 - share) * self._logits_NV.gather(1, self._targets_N1)
        if share:
            nats_N1 = nats_N1 - share * self._logits_NV.mean(-1, keepdim=True)
        if z:
            nats_N1 = nats_N1 + z * self._normaliser_N1.square()
        return nats_N1.masked_fill(~self._learned_N1, 0.0).sum()

    def gradient(self, dtype: torch.dtype) -> Tensor:
        """Of `nats`, for the product of states and weights."""
        share, z = self._smoothing
        slope_NV = (self._logits_NV - self._normaliser_N1).exp()
        if z:
            slope_NV = slope_NV * (1 + 2 * z * self._normaliser_N1)
        tokens_V = torch.arange(slope_NV.shape[1], device=slope_NV.device)
        slope_NV = slope_NV - torch.where(tokens_V == self._targets_N1, 1 - share, 0.0) - share / slope_NV.shape[1]
        if self._cap is not None:
            slope_NV = slope_NV * (1 - (self._logits_NV / self._cap).square())
        return slope_NV.masked_fill(~self._learned_N1, 0.0).to(dtype)


class _HeadLoss(torch.autograd.Function):
    """The output head and its loss in one: each part's gradient is made while its logits are there, so that nothing of
    them is kept and no product is done twice (Hsu et al. 2024, "Liger Kernel")."""

    @staticmethod
    def forward(
        ctx: Any, states_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, cap: float | None, smoothing: Smoothing
    ) -> Tensor:
        rounded_VD = weight_VD.to(states_ND.dtype)
        learns = weight_VD.requires_grad
        slope_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if learns else None
        nats, slopes_ND = [], []
        for rows in _parts(states_ND, len(weight_VD)):
            lost, slope_NV = _lose(states_ND[rows] @ rounded_VD.T, targets_N[rows], cap, smoothing)
            nats.append(lost)
            slopes_ND.append(slope_NV @ rounded_VD)
            if slope_VD is not None:
                slope_VD = slope_VD + slope_NV.T @ states_ND[rows]
        ctx.save_for_backward(torch.cat(slopes_ND), slope_VD)
        ctx.dtype = weight_VD.dtype
        return torch.stack(nats).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        (scale,) = gradients
        slopes_ND, slope_VD = ctx.saved_tensors
        weight = None if slope_VD is None else (slope_VD * scale).to(ctx.dtype)
        return (slopes_ND * scale).to(slopes_ND.dtype), weight, None, None, None
