"""Keys and values of the running sequences: one slot of the whole context each."""

import torch
import torch.nn.functional as F
from torch import Tensor

from wenfang.model import Decoder
from wenfang.model.decoder import Attend


class SlotCache:
    """Keys and values for up to `slots` sequences. L layers, S slots, G key/value heads, C context, K head width."""

    def __init__(self, model: Decoder, slots: int) -> None:
        config = model.config
        shape = (config.layers, slots, config.kv_heads, config.context, config.head_dim)
        dtype = model.embed_tokens.weight.dtype
        self._k_LSGCK = torch.zeros(shape, dtype=dtype)
        self._v_LSGCK = torch.zeros(shape, dtype=dtype)
        self._free = list(range(slots))

    @property
    def free(self) -> int:
        """Slots without a sequence."""
        return len(self._free)

    def take(self) -> int:
        """Reserve a slot."""
        return self._free.pop()

    def give_back(self, slot: int) -> None:
        """Return a slot; its content is overwritten by the next sequence before it is read."""
        self._free.append(slot)

    def prefill(self, slot: int) -> Attend:
        """Attention over one fresh sequence that also keeps its keys and values."""

        def attend(layer: int, q_1HTK: Tensor, k_1GTK: Tensor, v_1GTK: Tensor) -> Tensor:
            T = k_1GTK.shape[2]
            self._k_LSGCK[layer, slot, :, :T] = k_1GTK[0]
            self._v_LSGCK[layer, slot, :, :T] = v_1GTK[0]
            return F.scaled_dot_product_attention(q_1HTK, k_1GTK, v_1GTK, is_causal=True, enable_gqa=True)

        return attend

    def decode(self, slots_N: Tensor, positions_N: Tensor) -> Attend:
        """Attention of one new token per sequence over what its slot holds, itself included."""
        longest = int(positions_N.max()) + 1
        seen_N11C = (torch.arange(longest) <= positions_N[:, None])[:, None, None, :]

        def attend(layer: int, q_NH1K: Tensor, k_NG1K: Tensor, v_NG1K: Tensor) -> Tensor:
            self._k_LSGCK[layer, slots_N, :, positions_N] = k_NG1K[:, :, 0]
            self._v_LSGCK[layer, slots_N, :, positions_N] = v_NG1K[:, :, 0]
            k_NGCK = self._k_LSGCK[layer, :, :, :longest].index_select(0, slots_N)
            v_NGCK = self._v_LSGCK[layer, :, :, :longest].index_select(0, slots_N)
            return F.scaled_dot_product_attention(q_NH1K, k_NGCK, v_NGCK, attn_mask=seen_N11C, enable_gqa=True)

        return attend
