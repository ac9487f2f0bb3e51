"""The three guessers of speculative decoding: earlier text, a smaller model, and the model's own look ahead.

The two that compute keep their keys and values under the block numbers of the sequence they guess for, in caches of
their own. A block that was found as a prefix may hold, at its very end, a key of a guesser that belongs to other
following tokens: that can cost a guess, never an error.

Shapes: N requests, T tokens, D model width, V vocabulary.
"""

from collections.abc import Sequence as Rows
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from wenfang.engine.request import Generation
from wenfang.engine.runner import Runner
from wenfang.engine.sampling import choose
from wenfang.engine.sequence import Sequence

NGRAMS = (3, 2)
"""Lengths of the endings that are looked up, the longest first."""


class LookupDrafter:
    """Proposes what followed the text's last few tokens where they stood last.

    Args:
        tokens: most guesses at once.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self._ends: WeakKeyDictionary[Sequence, dict[tuple[int, ...], int]] = WeakKeyDictionary()
        self._indexed: WeakKeyDictionary[Sequence, int] = WeakKeyDictionary()

    def read_prompt(self, sequence: Sequence, start: int, hidden_TD: Tensor) -> None:
        """Nothing: the tokens are all it needs."""

    def read_accepted(self, sequence: Sequence, start: int, hidden_TD: Tensor) -> None:
        """Nothing."""

    def propose(self, requests: Rows[Generation], limits: Rows[int]) -> list[list[int]]:
        """The tokens after the latest earlier occurrence of the ending, for each request."""
        return [self._lookup(request.sequences[0], limit) for request, limit in zip(requests, limits, strict=True)]

    def _lookup(self, sequence: Sequence, limit: int) -> list[int]:
        tokens, ends = sequence.tokens, self._ends.setdefault(sequence, {})
        for place in range(self._indexed.get(sequence, 1), len(tokens)):
            ends.update({tuple(tokens[place - n : place]): place for n in NGRAMS if n <= place})
        self._indexed[sequence] = len(tokens)
        found = (ends.get(tuple(tokens[-n:])) for n in NGRAMS)
        end = next((end for end in found if end is not None), None)
        if end is None:
            return []
        line = list(tokens)
        for i in range(end, end + limit):  # What is copied may reach into the copy: a text that repeats itself.
            line.append(line[i])
        return line[len(tokens) :]


class ModelDrafter:
    """A smaller model that continues the text by itself.

    Args:
        runner: of the smaller model.
        tokens: most guesses at once.
        vocab_size: of the model that is guessed for; the smaller one's table may be padded otherwise.
    """

    def __init__(self, runner: Runner, tokens: int, vocab_size: int) -> None:
        self.tokens = tokens
        self._runner, self._vocab_size = runner, vocab_size
        self._computed: WeakKeyDictionary[Sequence, int] = WeakKeyDictionary()

    def read_prompt(self, sequence: Sequence, start: int, hidden_TD: Tensor) -> None:
        """Compute the same tokens, unless they are beyond what the smaller model can read."""
        end = start + len(hidden_TD)
        if end <= self._runner.config.context:
            self._runner.run([Sequence(sequence.tokens, start, sequence.table)], [len(hidden_TD)])
            self._computed[sequence] = end

    def read_accepted(self, sequence: Sequence, start: int, hidden_TD: Tensor) -> None:
        """Nothing: what it guessed rightly it has computed already."""

    def propose(self, requests: Rows[Generation], limits: Rows[int]) -> list[list[int]]:
        """Draw one token after the other, for all requests together."""
        drafts: list[list[int]] = [[] for _ in requests]
        views = [self._view(request.sequences[0]) for request in requests]
        longest = self._runner.config.context
        rooms = [min(limit, longest - len(view.tokens)) for limit, view in zip(limits, views, strict=True)]
        for step in range(max(rooms, default=0)):
            rows = [i for i, room in enumerate(rooms) if step < room]
            states = self._runner.run([views[i] for i in rows], [views[i].waiting for i in rows])
            last_ND = torch.stack([hidden_TD[-1] for hidden_TD in states])
            logits_NV = self._runner.logits(last_ND)[:, : self._vocab_size]
            chosen = choose(logits_NV, [requests[i].sampler.after(drafts[i]) for i in rows])
            for i, token in zip(rows, chosen, strict=True):
                drafts[i].append(token)
                views[i].computed = len(views[i].tokens)
                views[i].tokens.append(token)
        for request, view in zip(requests, views, strict=True):
            self._computed[request.sequences[0]] = view.computed
        return drafts

    def _view(self, sequence: Sequence) -> Sequence:
        """The sequence as far as the smaller model has computed it: not beyond a guess that was wrong."""
        computed = min(self._computed.get(sequence, sequence.computed), len(sequence.tokens) - 1)
        return Sequence(list(sequence.tokens), computed, sequence.table)


class AheadDrafter:
    """The model's own layers for multi-token prediction (DeepSeek-V3 2024, section 2.2): depth k guesses the token k
    further than the model itself, from the model's states.

    What depth k computes at position t depends on token t + k. Positions whose last such token was a guess are
    computed again once it is known, so their states are kept.

    Args:
        runner: of the model, with a cache for these layers.
    """

    def __init__(self, runner: Runner) -> None:
        self.tokens = runner.config.ahead
        self._runner = runner
        self._states: WeakKeyDictionary[Sequence, tuple[int, Tensor]] = WeakKeyDictionary()
        """Position of the first state that is kept, and states_TD from there on."""

    def read_prompt(self, sequence: Sequence, start: int, hidden_TD: Tensor) -> None:
        """Compute as far as all tokens are known."""
        self.read_accepted(sequence, start, hidden_TD)
        first, states_TD = self._states[sequence]
        known = min(self._known(sequence), first + len(states_TD))
        if known > first:
            view = Sequence(sequence.tokens, first, sequence.table)
            x_TD = states_TD[: known - first]
            for depth in range(1, self.tokens + 1):
                (x_TD,) = self._runner.look_ahead(depth, [view], [x_TD])
            self._states[sequence] = known, states_TD[known - first :]

    def read_accepted(self, sequence: Sequence, start: int, hidden_TD: Tensor) -> None:
        """Keep the states for the next proposal."""
        first, states_TD = self._states.get(sequence, (start, hidden_TD[:0]))
        if first + len(states_TD) != start:  # Something in between was found in the cache.
            first, states_TD = start, hidden_TD[:0]
        self._states[sequence] = first, torch.cat((states_TD, hidden_TD))

    def propose(self, requests: Rows[Generation], limits: Rows[int]) -> list[list[int]]:
        """Draw a token at each depth, for all requests together."""
        drafts: list[list[int]] = [[] for _ in requests]
        rows = [i for i, request in enumerate(requests) if len(self._states.get(request.sequences[0], (0, ()))[1])]
        if not rows:
            return drafts
        sequences = [requests[i].sequences[0] for i in rows]
        kept = [self._states[sequence] for sequence in sequences]
        views = [Sequence(list(s.tokens), first, s.table) for s, (first, _) in zip(sequences, kept, strict=True)]
        states = [states_TD for _, states_TD in kept]
        for depth in range(1, self.tokens + 1):
            states = self._runner.look_ahead(depth, views, states)
            logits_NV = self._runner.logits(torch.stack([states_TD[-1] for states_TD in states]))
            chosen = choose(logits_NV, [requests[i].sampler.after(drafts[i]) for i in rows])
            for i, view, token in zip(rows, views, chosen, strict=True):
                drafts[i].append(token)
                view.tokens.append(token)
        for sequence, (first, states_TD) in zip(sequences, kept, strict=True):
            known = max(first, self._known(sequence))
            self._states[sequence] = known, states_TD[known - first :]
        return [draft[:limit] for draft, limit in zip(drafts, limits, strict=True)]

    def _known(self, sequence: Sequence) -> int:
        """Positions from the beginning whose following tokens are known at every depth."""
        return len(sequence.tokens) - self.tokens
