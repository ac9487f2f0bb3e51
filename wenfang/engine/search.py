"""Searches that keep several continuations of one prompt: beam search, diverse beams, contrastive search.

A search never runs the model. It is given the output for its rows and answers with the next rows, each as (the row it
continues, the token it adds); an empty answer ends it. Shapes: B rows, V vocabulary, T tokens, D model width.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from wenfang.core.errors import InputError
from wenfang.core.language import say

Child = tuple[int, int]
"""(row of the parent, token)."""
STEEPEST = 10.0
"""The largest exponent of a length: its power must stay a number."""


@dataclass(frozen=True)
class Found:
    """A finished continuation."""

    token_ids: list[int]
    score: float
    """What the search ranks by: for beams the log-probability divided by length^`length_penalty`."""
    finish_reason: str


class Search(Protocol):
    """How the engine drives a search."""

    width: int
    """Most rows it asks for."""
    reads_prompt: bool
    """Whether `read` must be called with the hidden states of the whole prompt first."""

    def read(self, hidden_TD: Tensor) -> None:
        """Take hidden states of the prompt, in order."""

    def expand(self, logits_BV: Tensor, hidden_BD: Tensor) -> list[Child]:
        """The next rows, given the output for the last token of each present row; none ends the search."""

    def found(self) -> list[Found]:
        """The results, best first, once `expand` has answered nothing."""


@dataclass(frozen=True, kw_only=True)
class BeamParams:
    """Beam search; with `groups` > 1 diverse beam search (Vijayakumar et al. 2018).

    Raises:
        InputError: a value is out of range, or changes nothing; the message names it.
    """

    width: int = 4
    """Beams kept, all groups together."""
    groups: int = 1
    """Groups that search one after another at each step, each kept from the tokens of those before it."""
    diversity_penalty: float = 0.0
    """Taken from a token's log-probability for each earlier group's beam that chose it at this step; needs `groups`."""
    length_penalty: float = 1.0
    """Exponent of the length that a finished beam's log-probability is divided by."""
    early_stopping: bool = False
    """End as soon as `width` beams are finished, even if a running one could still overtake them."""
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        _check("width", self.width, self.width >= 1 and self.width % max(self.groups, 1) == 0)
        _check("groups", self.groups, self.groups >= 1)
        _check("diversity_penalty", self.diversity_penalty, 0.0 <= self.diversity_penalty < math.inf)
        if self.diversity_penalty and self.groups == 1:
            raise InputError(
                say(
                    zh="`diversity_penalty` 只在各組之間起作用，`groups` 必須大於 1。",
                    en="`diversity_penalty` acts between groups; it needs `groups` above 1.",
                )
            )
        _check("length_penalty", self.length_penalty, abs(self.length_penalty) <= STEEPEST)
        _check("max_tokens", self.max_tokens, self.max_tokens is None or self.max_tokens >= 1)


@dataclass(frozen=True, kw_only=True)
class ContrastiveParams:
    """Contrastive search (Su et al. 2022): of the k likeliest tokens the one whose hidden state repeats least.

    Raises:
        InputError: a value is out of range; the message names it.
    """

    top_k: int = 4
    penalty_alpha: float = 0.6
    """Weight of the degeneration penalty; 0 is greedy."""
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        _check("top_k", self.top_k, self.top_k >= 1)
        _check("penalty_alpha", self.penalty_alpha, 0.0 <= self.penalty_alpha <= 1.0)
        _check("max_tokens", self.max_tokens, self.max_tokens is None or self.max_tokens >= 1)


def _check(name: str, value: object, valid: bool) -> None:
    if not valid:
        raise InputError(say(zh=f"`{name}` 的值 {value!r} 無效。", en=f"`{name}` cannot be {value!r}."))


@dataclass
class _Beam:
    logprob: float
    tokens: list[int]


@dataclass
class _Group:
    beams: list[_Beam]
    finished: list[Found] = field(default_factory=list)
    done: bool = False


class BeamSearch:
    """One beam search under way.

    Args:
        params: what was asked.
        end_id: the token that ends a text.
        limit: longest continuation in tokens.
    """

    reads_prompt = False

    def __init__(self, params: BeamParams, end_id: int, limit: int) -> None:
        self.width = params.width
        self._params = params
        self._end_id = end_id
        self._limit = limit
        self._size = params.width // params.groups
        self._groups = [_Group([_Beam(0.0, [])]) for _ in range(params.groups)]
        self._length = 0

    def read(self, hidden_TD: Tensor) -> None:
        """Beams need nothing of the prompt but its last output."""

    def expand(self, logits_BV: Tensor, hidden_BD: Tensor) -> list[Child]:
        """One step of every group, in order. All groups start from the prompt's one row."""
        log_BV = logits_BV.double().log_softmax(-1)
        chosen: Counter[int] = Counter()
        children: list[Child] = []
        first, shared = 0, self._length == 0
        self._length += 1
        for group in self._groups:
            rows = slice(0, 1) if shared else slice(first, first + len(group.beams))
            first = rows.start if shared else rows.stop
            children += [(rows.start + parent, token) for parent, token in self._step(group, log_BV[rows], chosen)]
        return children

    def found(self) -> list[Found]:
        """Finished beams of all groups, best first."""
        everything = [found for group in self._groups for found in group.finished]
        return sorted(everything, key=lambda found: -found.score)[: self.width]

    def _step(self, group: _Group, log_BV: Tensor, chosen: Counter[int]) -> list[Child]:
        """Keep the best continuations of one group's beams; those that end are set aside."""
        if group.done:
            return []
        V = log_BV.shape[1]
        totals_BV = log_BV + torch.tensor([[beam.logprob] for beam in group.beams], dtype=torch.float64)
        ranked_BV = totals_BV.clone()
        for token, times in chosen.items():
            ranked_BV[:, token] -= self._params.diversity_penalty * times
        # Twice as many as are kept: even if each of them ends, as many go on.
        best = ranked_BV.flatten().topk(min(2 * self._size, ranked_BV.numel())).indices.tolist()
        beams: list[_Beam] = []
        children: list[Child] = []
        for rank, index in enumerate(best):
            parent, token = divmod(index, V)
            beam = _Beam(float(totals_BV[parent, token]), [*group.beams[parent].tokens, token])
            ends = token == self._end_id
            if ends or self._length == self._limit:
                if rank < self._size:
                    self._finish(group, beam, "stop" if ends else "length")
            elif len(beams) < self._size and beam.logprob > -math.inf:
                beams.append(beam)
                children.append((parent, token))
        chosen.update(token for _, token in children)
        if not beams or self._cannot_improve(group, beams):
            group.done, group.beams = True, []
            return []
        group.beams = beams
        return children

    def _finish(self, group: _Group, beam: _Beam, reason: str) -> None:
        score = beam.logprob / len(beam.tokens) ** self._params.length_penalty
        if score > -math.inf:
            group.finished.append(Found(beam.tokens, score, reason))
            group.finished.sort(key=lambda found: -found.score)
            del group.finished[self._size :]

    def _cannot_improve(self, group: _Group, beams: list[_Beam]) -> bool:
        """Whether enough beams are finished and none of the running ones would rank among them if it ended here."""
        if len(group.finished) < self._size:
            return False
        best = max(beam.logprob for beam in beams) / self._length**self._params.length_penalty
        return self._params.early_stopping or group.finished[-1].score >= best


class ContrastiveSearch:
    """One contrastive search under way: each row is a candidate for the next token.

    Args:
        params: what was asked.
        end_id: the token that ends a text.
        limit: longest continuation in tokens.
    """

    reads_prompt = True

    def __init__(self, params: ContrastiveParams, end_id: int, limit: int) -> None:
        self.width = params.top_k
        self._alpha = params.penalty_alpha
        self._end_id = end_id
        self._limit = limit
        self._context: list[Tensor] = []
        self._candidates: list[tuple[int, float]] = []
        self._written: list[int] = []
        self._score = 0.0

    def read(self, hidden_TD: Tensor) -> None:
        """Keep the directions of the prompt's hidden states."""
        self._context.append(F.normalize(hidden_TD.float(), dim=-1))

    def expand(self, logits_BV: Tensor, hidden_BD: Tensor) -> list[Child]:
        """Choose among the candidates just computed, then name the candidates that follow the chosen one."""
        row = 0
        if self._candidates:
            row = self._choose(hidden_BD)
            if self._written[-1] == self._end_id or len(self._written) == self._limit:
                return []
        best = logits_BV[row].double().softmax(-1).topk(min(self.width, logits_BV.shape[1]))
        self._candidates = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return [(row, token) for token, _ in self._candidates]

    def found(self) -> list[Found]:
        """The one text, scored by the mean of its tokens' scores."""
        reason = "stop" if self._written[-1] == self._end_id else "length"
        return [Found(self._written, self._score / len(self._written), reason)]

    def _choose(self, hidden_BD: Tensor) -> int:
        directions_BD = F.normalize(hidden_BD.float(), dim=-1)
        repetition_B = (directions_BD @ torch.cat(self._context).T).amax(-1).tolist()
        scores = [
            (1 - self._alpha) * probability - self._alpha * similarity
            for (_, probability), similarity in zip(self._candidates, repetition_B, strict=True)
        ]
        row = max(range(len(scores)), key=scores.__getitem__)
        self._context.append(directions_BD[row : row + 1])
        self._written.append(self._candidates[row][0])
        self._score += scores[row]
        return row
