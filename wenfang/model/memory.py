"""What a call to the decoder may see and what it leaves behind: masks, key/value caches, recurrent states.

The layers own weights; the memory owns everything that depends on the sequences. `Memory` itself serves whole
sequences and keeps nothing; a cache subclasses it. All attention in the house runs through `attention` below.

Shapes in names: B batch, T queries, S keys, H query heads, G key/value heads, K key width, V value width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wenfang import native

State = tuple[Tensor, ...]
"""What a recurrent mixer carries from one call to the next; each tensor begins with the batch dimension."""


@dataclass(frozen=True)
class AttentionSpec:
    """What a layer asks of its attention besides queries, keys and values."""

    scale: float
    """Factor on q·k."""
    window: int | None = None
    """Keys this far back and further are not seen."""
    softcap: float | None = None
    """Scores become cap · tanh(score / cap) before masking."""
    slopes: tuple[float, ...] | None = None
    """ALiBi: each head lowers its scores by slope · distance (Press et al. 2022)."""
    sinks_H: Tensor | None = None
    """A score per head that takes part in the softmax and brings no value (gpt-oss, Xiao et al. 2024)."""
    latent: int | None = None
    """Where set, the values are the first `latent` channels of the keys; a cache keeps the keys only (MLA)."""

    @property
    def plain(self) -> bool:
        """Whether the softmax is of the scaled scores alone."""
        return self.softcap is None and self.slopes is None and self.sinks_H is None


class Sight:
    """Which keys the queries of one call see. Built once per call and shared by its layers.

    Args:
        queries_BT, keys_BS: positions, comparable within a row; a query sees keys at its own position and before.
        allowed_BTS: further limits, such as document borders; each query must see at least one key.
        whole: queries and keys are the same unpadded sequences, so that a kernel may mask by itself.
    """

    def __init__(
        self, queries_BT: Tensor, keys_BS: Tensor, *, allowed_BTS: Tensor | None = None, whole: bool = False
    ) -> None:
        self._distance_BTS = queries_BT[:, :, None] - keys_BS[:, None, :]
        self._seen_BTS = self._distance_BTS >= 0
        if allowed_BTS is not None:
            self._seen_BTS = self._seen_BTS & allowed_BTS
        self._whole = whole and allowed_BTS is None
        self._biases: dict[tuple[int | None, tuple[float, ...] | None, torch.dtype], Tensor] = {}

    def is_causal(self, spec: AttentionSpec) -> bool:
        """Whether plain causal masking is all there is."""
        covered = spec.window is None or spec.window >= self._distance_BTS.shape[1]
        return self._whole and covered and spec.slopes is None

    def bias(self, spec: AttentionSpec, dtype: torch.dtype) -> Tensor:
        """What is added to the scores, [B, 1 or H, T, S]: −∞ where a key is not seen, ALiBi elsewhere."""
        key = (spec.window, spec.slopes, dtype)
        if key not in self._biases:
            self._biases[key] = self._bias(spec, dtype)
        return self._biases[key]

    def _bias(self, spec: AttentionSpec, dtype: torch.dtype) -> Tensor:
        seen_BTS = self._seen_BTS
        if spec.window is not None:
            seen_BTS = seen_BTS & (self._distance_BTS < spec.window)
        bias_BHTS = torch.zeros((), dtype=dtype, device=seen_BTS.device)
        if spec.slopes is not None:
            slopes_H11 = torch.tensor(spec.slopes, device=seen_BTS.device)[:, None, None]
            bias_BHTS = (-slopes_H11 * self._distance_BTS[:, None]).to(dtype)
        return bias_BHTS.masked_fill(~seen_BTS[:, None], float("-inf"))


def attention(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSV: Tensor, sight: Sight, spec: AttentionSpec) -> Tensor:
    """Context_BHTV by the fastest kernel that can do what `spec` asks."""
    if spec.softcap is not None or spec.sinks_H is not None:
        return attention_products(q_BHTK, k_BGSK, v_BGSV, sight.bias(spec, q_BHTK.dtype), spec)
    causal = sight.is_causal(spec)
    mask = None if causal else sight.bias(spec, q_BHTK.dtype)
    return F.scaled_dot_product_attention(
        q_BHTK, k_BGSK, v_BGSV, attn_mask=mask, is_causal=causal, scale=spec.scale, enable_gqa=True
    )


def attention_products(
    q_BHTK: Tensor, k_BGSK: Tensor, v_BGSV: Tensor, bias_BHTS: Tensor, spec: AttentionSpec
) -> Tensor:
    """Context_BHTV by plain matrix products, softmax in fp32."""
    groups = q_BHTK.shape[1] // k_BGSK.shape[1]
    k_BHSK, v_BHSV = k_BGSK.repeat_interleave(groups, 1), v_BGSV.repeat_interleave(groups, 1)
    scores_BHTS = (q_BHTK * spec.scale) @ k_BHSK.transpose(-1, -2)
    if spec.softcap is not None:
        scores_BHTS = (scores_BHTS / spec.softcap).tanh() * spec.softcap
    scores_BHTS = (scores_BHTS + bias_BHTS).float()
    if spec.sinks_H is not None:
        sinks_BHT1 = spec.sinks_H.float()[:, None, None].expand(*scores_BHTS.shape[:3], 1)
        weights_BHTS = torch.cat((scores_BHTS, sinks_BHT1), -1).softmax(-1)[..., :-1]
    else:
        weights_BHTS = scores_BHTS.softmax(-1)
    return weights_BHTS.to(v_BHSV.dtype) @ v_BHSV


class Memory:
    """Whole sequences, nothing kept.

    Args:
        documents_BT: for packed rows, the document each position belongs to (−1 for padding). Documents do not see
            each other: attention masks them, and a recurrent mixer starts afresh wherever the number changes.
            None where each row is one sequence, with any padding to the right.
    """

    lasting = False
    """Whether a later call continues these sequences, so that layers should hand over their smallest keys."""
    retrieves = False
    """Whether neighbours may come in any call, so that a lasting memory keeps what reading them needs in every call."""

    def __init__(self, documents_BT: Tensor | None = None) -> None:
        self.documents_BT = documents_BT
        self.losses: list[Tensor] = []
        """What layers ask training to minimise besides the likelihood, per token."""
        self.first_values_BTE: Tensor | None = None
        """Values of the call's first RWKV-7 layer, which its later ones mix in."""
        self.neighbours_BSNR: Tensor | None = None
        """For a decoder with retrieval: token ids of the neighbours of each chunk that the call completes, −1 where
        there is no token; set by the caller (see `wenfang.model.retro`)."""
        self._sight: Sight | None = None

    def attend(self, layer: int, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTV: Tensor, spec: AttentionSpec) -> Tensor:
        """Context_BHTV of the call's queries over all keys that they may see, the call's own included.

        Where it can run, our own kernel does this; it never computes what a query does not see.
        """
        seen_BT = self.seen(q_BHTK) if spec.plain and native.can_attend(q_BHTK, v_BGTV) else None
        if seen_BT is None:
            return self.attend_masked(q_BHTK, k_BGTK, v_BGTV, spec)
        if spec.window is not None:
            seen_BT = seen_BT.clamp(max=spec.window - 1)
        starts_BT = torch.arange(seen_BT.shape[1], device=seen_BT.device) - seen_BT
        return native.attention(q_BHTK, k_BGTK, v_BGTV, starts_BT.int(), spec.scale)

    def attend_masked(self, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTV: Tensor, spec: AttentionSpec) -> Tensor:
        """The same by torch."""
        return attention(q_BHTK, k_BGTK, v_BGTV, self.sight(q_BHTK), spec)

    def seen(self, q_BHTK: Tensor) -> Tensor | None:
        """How many positions right before each one its document or sequence has, [B, T]; None where that is not known
        of packed rows."""
        if self.documents_BT is not None:
            return None
        return torch.arange(q_BHTK.shape[2], device=q_BHTK.device).expand(len(q_BHTK), -1)

    def recall(self, place: str) -> State | None:
        """The state that a recurrent part of the decoder kept in the last call; None at the beginning of the
        sequences."""
        return None

    def keep(self, place: str, state: State) -> None:
        """Store the state of a recurrent part after the last position of this call."""

    def sight(self, q_BHTK: Tensor) -> Sight:
        """What the queries of this call see."""
        if self._sight is None:
            indices_1T = torch.arange(q_BHTK.shape[2], device=q_BHTK.device)[None]
            documents_BT = self.documents_BT
            same_BTT = None if documents_BT is None else documents_BT[:, :, None] == documents_BT[:, None, :]
            self._sight = Sight(indices_1T, indices_1T, allowed_BTS=same_BTT, whole=True)
        return self._sight
