"""What a decoder makes of a text as a whole: the mean of its final states, for search."""

import torch
import torch.nn.functional as F
from torch import Tensor

from wenfang.model.decoder import Decoder
from wenfang.model.memory import Memory


def embed_text(model: Decoder, ids_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """Unit vectors e_BD in fp32, one per row; their products are cosines.

    Args:
        ids_BT: tokens from the left, −1 after the last. A row without any gives zeros.
    """
    present_BT = ids_BT >= 0
    positions_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device).expand_as(ids_BT)
    states_BTD = model.hidden(ids_BT.clamp(min=0), positions_BT, Memory(), dtype).float()
    return F.normalize((states_BTD * present_BT[..., None]).sum(1), dim=-1)
