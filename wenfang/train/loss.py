"""The objective of pretraining and supervised fine-tuning: next-token cross-entropy within each document."""

import torch
import torch.nn.functional as F
from torch import Tensor

from wenfang.model import Decoder
from wenfang.train.packing import IGNORED


def cross_entropy_sum(
    model: Decoder, ids_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor, positions_BT: Tensor, dtype: torch.dtype
) -> Tensor:
    """Sum of −log p(target) in nats over the positions that count, fp32. Documents in a row never see each other."""
    T = ids_BT.shape[1]
    same_B1TT = (documents_BT[:, None, :, None] == documents_BT[:, None, None, :]) & torch.ones(
        T, T, dtype=torch.bool, device=ids_BT.device
    ).tril()
    bias_B1TT = torch.zeros((), dtype=dtype).masked_fill(~same_B1TT, float("-inf"))

    def attend(_layer: int, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor) -> Tensor:
        # Rows are short: plain products beat the CPU's fused attention kernel (docs/log.md, 2026-11-23).
        groups = q_BHTK.shape[1] // k_BGTK.shape[1]
        k_BHTK, v_BHTK = k_BGTK.repeat_interleave(groups, 1), v_BGTK.repeat_interleave(groups, 1)
        scores_BHTT = (q_BHTK * q_BHTK.shape[-1] ** -0.5) @ k_BHTK.transpose(-1, -2) + bias_B1TT
        return scores_BHTT.float().softmax(-1).to(v_BHTK.dtype) @ v_BHTK

    logits_BTV = model.lm_head(model.hidden(ids_BT, positions_BT, attend, dtype))
    return F.cross_entropy(
        logits_BTV.float().flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORED, reduction="sum"
    )
