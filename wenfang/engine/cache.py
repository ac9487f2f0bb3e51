"""What the running sequences have left behind: one slot of the whole context each."""

import torch
from torch import Tensor

from wenfang.model import Decoder
from wenfang.model.memory import AttentionSpec, Memory, Sight, State, attention


class SlotCache:
    """Keys, values and recurrent states for up to `slots` sequences.

    S slots, N sequences of one call, T new positions, C context, G key/value heads, K head width.
    """

    def __init__(self, model: Decoder, slots: int) -> None:
        config, dtype = model.config, model.embed_tokens.weight.dtype
        self.keys_SGCK: dict[int, Tensor] = {}
        self.values_SGCV: dict[int, Tensor] = {}
        self.states: dict[str, State] = {}
        heads, key_width, value_width = config.kv_shape()
        for layer in config.attention_layers:
            self.keys_SGCK[layer] = torch.zeros(slots, heads, config.context, key_width, dtype=dtype)
            self.values_SGCV[layer] = torch.zeros(slots, heads, config.context, value_width, dtype=dtype)
        self._slots = slots
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

    def prefill(self, slot: int, start: int, stop: int) -> Memory:
        """For one sequence's positions from `start` up to `stop`; those before `start` are in the slot already."""
        return _Slots(self, torch.tensor([slot]), torch.arange(start, stop)[None])

    def decode(self, slots_N: Tensor, positions_N: Tensor) -> Memory:
        """For one new token per sequence."""
        return _Slots(self, slots_N, positions_N[:, None])

    def keep(self, place: str, slots_N: Tensor, state: State) -> None:
        """Store the recurrent states of some slots."""
        if place not in self.states:
            self.states[place] = tuple(part.new_zeros(self._slots, *part.shape[1:]) for part in state)
        for kept, part in zip(self.states[place], state, strict=True):
            kept[slots_N] = part


class _Slots(Memory):
    """Some slots during one call, at the given positions."""

    lasting = True

    def __init__(self, cache: SlotCache, slots_N: Tensor, positions_NT: Tensor) -> None:
        super().__init__()
        self._cache, self._slots_N, self._positions_NT = cache, slots_N, positions_NT
        self._fresh = len(slots_N) == 1 and int(positions_NT[0, 0]) == 0
        self._longest = int(positions_NT.max()) + 1
        keys_1C = torch.arange(self._longest)[None]
        self._sight = Sight(positions_NT, keys_1C, whole=self._fresh)

    def attend(self, layer: int, q_NHTK: Tensor, k_NGTK: Tensor, v_NGTV: Tensor, spec: AttentionSpec) -> Tensor:
        keys_NGCK = self._write(self._cache.keys_SGCK[layer], k_NGTK)
        if spec.latent is None:
            values_NGCV = self._write(self._cache.values_SGCV[layer], v_NGTV)
        else:
            values_NGCV = keys_NGCK[..., : spec.latent]
        return attention(q_NHTK, keys_NGCK, values_NGCV, self.sight(q_NHTK), spec)

    def recall(self, place: str) -> State | None:
        if self._fresh:
            return None
        return tuple(part.index_select(0, self._slots_N) for part in self._cache.states[place])

    def keep(self, place: str, state: State) -> None:
        self._cache.keep(place, self._slots_N, state)

    def _write(self, kept_SGCK: Tensor, new_NGTK: Tensor) -> Tensor:
        """Put the new positions into their slots and return all that those hold up to the longest."""
        if self._fresh:
            kept_SGCK[self._slots_N[0], :, : self._longest] = new_NGTK[0]
            return new_NGTK
        kept_SGCK[self._slots_N[:, None], :, self._positions_NT] = new_NGTK.transpose(1, 2)
        return kept_SGCK[:, :, : self._longest].index_select(0, self._slots_N)
