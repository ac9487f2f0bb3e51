"""How surprised a model is by text it did not write."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from wenfang.model import Decoder
from wenfang.model.memory import Memory

Pair = tuple[list[int], list[int]]
"""Token ids of a prompt, and of the reply whose likelihood is asked."""


@torch.inference_mode()
def reply_nats(model: Decoder, pairs: Sequence[Pair]) -> list[float]:
    """−log p(reply | prompt) in nats for each pair, computed as one right-padded batch in fp32.

    Args:
        pairs: prompts and replies; prompt and reply together must fit the model's context plus one.
    """
    longest = max(len(prompt) + len(reply) for prompt, reply in pairs)
    ids_BT = torch.zeros(len(pairs), longest, dtype=torch.long)
    said_BT = torch.zeros(len(pairs), longest, dtype=torch.bool)
    for row, (prompt, reply) in enumerate(pairs):
        ids_BT[row, : len(prompt) + len(reply)] = torch.tensor([*prompt, *reply])
        said_BT[row, len(prompt) : len(prompt) + len(reply)] = True
    # Padding stands to the right, where causal attention never looks.
    positions_BT = torch.arange(longest - 1).expand(len(pairs), -1)
    logits_BTV = model(ids_BT[:, :-1], positions_BT, Memory())
    nats_BT = F.cross_entropy(logits_BTV.float().transpose(1, 2), ids_BT[:, 1:], reduction="none")
    return [float(x) for x in (nats_BT * said_BT[:, 1:]).sum(-1)]
