"""The objective of pretraining and supervised fine-tuning: next-token cross-entropy within each document."""

import torch
import torch.nn.functional as F
from torch import Tensor

from wenfang.model import Decoder
from wenfang.model.memory import AttentionSpec, Memory, attention_products
from wenfang.train.packing import IGNORED

AHEAD_WEIGHT = 0.3
"""Weight of multi-token prediction beside the next token (DeepSeek-V3 2024, section 4.2)."""


class _Rows(Memory):
    """Packed rows. Where our own kernel cannot run, plain products beat the CPU's fused attention at the length of our
    rows (docs/log.md, 2026-11-23)."""

    def __init__(self, documents_BT: Tensor, positions_BT: Tensor) -> None:
        super().__init__(documents_BT)
        self._positions_BT = positions_BT

    def seen(self, q_BHTK: Tensor) -> Tensor:
        return self._positions_BT

    def attend_masked(self, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTV: Tensor, spec: AttentionSpec) -> Tensor:
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
    logits_NV = model.logits(states_BTD).float().flatten(0, 1)
    targets_N = targets_BT.flatten()
    nats = F.cross_entropy(logits_NV, targets_N, ignore_index=IGNORED, reduction="sum", label_smoothing=label_smoothing)
    if z_loss:
        normaliser_N = logits_NV.logsumexp(-1)
        nats = nats + z_loss * normaliser_N.square().masked_fill(targets_N == IGNORED, 0.0).sum()
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
        logits_BTV = model.logits(ahead_BTD).float()
        depths_NATS.append(
            F.cross_entropy(logits_BTV.flatten(0, 1), later_BT.flatten(), ignore_index=IGNORED, reduction="sum")
        )
    return torch.stack(depths_NATS).mean()
