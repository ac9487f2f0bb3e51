"""Calls of the model for rows of the batch, shaped so that each row's result is its own (see `invariance`)."""

from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from wenfang.engine.blocks import BlockPool
from wenfang.engine.cache import PagedCache
from wenfang.engine.invariance import independent_rows
from wenfang.engine.sequence import Sequence
from wenfang.model import Decoder

_PROBED_OUTPUTS = 2048
"""Wider weights behave as one this wide; trying the whole vocabulary would take seconds."""


class Runner:
    """The model and its cache."""

    def __init__(self, model: Decoder, blocks: int) -> None:
        shapes = {(w.shape[1], min(w.shape[0], _PROBED_OUTPUTS)) for w in model.parameters() if w.ndim == 2}
        self._dtype = model.embed_tokens.weight.dtype
        self._rows = independent_rows(self._dtype, shapes)
        self._model = model
        self._cache = PagedCache(model, blocks, self._rows)

    @property
    def recurrent(self) -> bool:
        """Whether a layer carries a state, which cannot be found again in blocks."""
        config = self._model.config
        return config.token_shift or len(config.attention_layers) < config.layers

    def run(self, sequences: Rows[Sequence], tokens: int) -> Tensor:
        """Hidden_NTD of the next `tokens` tokens of each sequence, whose keys and values are then in the cache. The
        blocks must be reserved."""
        if self.recurrent and len({sequence.computed > 0 for sequence in sequences}) > 1:
            # A recurrent layer begins all its rows with a state or none.
            return torch.cat([self.run([sequence], tokens) for sequence in sequences])
        N = len(sequences)
        B, T = self._shape(N, tokens)
        ids_BT = torch.zeros((B, T), dtype=torch.long)
        ids_BT[:N, :tokens] = torch.tensor([s.tokens[s.computed : s.computed + tokens] for s in sequences])
        positions_BT = torch.zeros((B, T), dtype=torch.long)
        positions_BT[:N] = torch.tensor([[s.computed] for s in sequences]) + torch.arange(T)
        positions_BT.clamp_(max=self._model.config.context - 1)  # Of padding behind the last token.
        memory = self._cache.memory(sequences, B, T, tokens)
        return self._model.hidden(ids_BT, positions_BT, memory, self._dtype)[:N, :tokens]

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Logits_NV in fp32."""
        N = len(hidden_ND)
        padding = hidden_ND[:1].expand(self._padded(N) - N, -1)
        return self._model.logits(torch.cat((hidden_ND, padding)))[:N].float()

    def fork(self, sequence: Sequence, pool: BlockPool) -> Sequence:
        """A second sequence with the same tokens. Where no block is left for the unfinished last one, the fork's few
        tokens in it, and all of them before a recurrent layer, are computed again later."""
        fork = sequence.fork(pool)
        if fork.computed < sequence.computed and fork.reserve(pool, sequence.computed):
            for source, target in zip(
                sequence.table[len(fork.identities) :], fork.table[len(fork.identities) :], strict=True
            ):
                self._cache.copy(source, target)
            fork.computed = sequence.computed
        if fork.computed == sequence.computed:
            fork.states = dict(sequence.states)
        elif self.recurrent:
            fork.release(pool)
        return fork

    def _shape(self, N: int, tokens: int) -> tuple[int, int]:
        """Rows and columns of a call, so many that the products of its layers have enough rows."""
        if N == 1 and not self.recurrent:
            return N, self._padded(tokens)
        # Padding rows, not columns: a state must not read any.
        return next(B for B in range(N, N + self._rows) if B * tokens % self._rows == 0), tokens

    def _padded(self, rows: int) -> int:
        return -(-rows // self._rows) * self._rows
