"""One step of the running batch: parts of prompts, then one token or more for every request that is ready."""

import threading
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wenfang.engine.request import Generation, Request, SearchRequest
from wenfang.engine.runner import Runner
from wenfang.engine.sampling import choose, observe
from wenfang.engine.scheduler import Scheduler
from wenfang.engine.speculation import Drafter

CHUNK = 256
"""Prompt tokens computed between two tokens of the running requests: a long prompt delays them no longer."""


@dataclass
class _Turn:
    """A request that goes on now."""

    request: Request
    hidden_BD: Tensor
    """The output for the last token of each of its rows, or for its one row's last token and the guesses behind it."""
    guesses: list[int] = field(default_factory=list)
    written: int = 0
    """Tokens that a completion has got in this turn."""


class Batch:
    """The requests that run together. Only the engine's thread may step.

    Args:
        runner: calls the model.
        scheduler: says who runs.
        changed: the lock on the scheduler.
        drafter: guesses tokens, if anybody does.
    """

    def __init__(
        self, runner: Runner, scheduler: Scheduler, changed: threading.Condition, drafter: Drafter | None = None
    ) -> None:
        self._runner, self._scheduler, self._changed, self._drafter = runner, scheduler, changed, drafter

    def step(self) -> None:
        """Compute what is to be computed, choose tokens, and let go of what has ended."""
        read, decoded = self._read_prompts(), self._decode()
        if not (read or decoded):
            return
        self._choose([*read, *decoded])
        self._settle(decoded)
        with self._changed:
            for turn in (*read, *decoded):
                if turn.request.finished:
                    self._scheduler.drop(turn.request)

    def _read_prompts(self) -> list[_Turn]:
        """Parts of prompts; returns the requests whose prompts are read to the end."""
        turns: list[_Turn] = []
        with self._changed:
            prefills = list(self._scheduler.prefills(CHUNK))
            # Some may have stepped back for others.
            prefills = [prefill for prefill in prefills if prefill[0] in self._scheduler.running]
        read = self._runner.read([sequence for _, sequence, _ in prefills], [tokens for _, _, tokens in prefills])
        for (request, sequence, tokens), hidden_TD in zip(prefills, read, strict=True):
            start = sequence.computed
            sequence.advance(self._scheduler.pool, tokens)
            request.read(start, hidden_TD, self._runner.logits)
            if self._drafter is not None:
                self._drafter.read_prompt(sequence, start, hidden_TD)
            if not sequence.waiting:
                turns.append(_Turn(request, hidden_TD[-1:]))
        return turns

    def _decode(self) -> list[_Turn]:
        """The last token of every row, and what may come behind it, in one call."""
        with self._changed:
            decoding = self._scheduler.decodes()
        if not decoding:
            return []
        guesses = self._guess(decoding)
        rows = [
            sequence.guessing(guesses[request]) if guesses.get(request) else sequence
            for request in decoding
            for sequence in request.sequences
        ]
        states = self._runner.run(rows, [sequence.waiting for sequence in rows])
        turns, row = [], 0
        for request in decoding:
            first, row = row, row + len(request.sequences)
            guessed = guesses.get(request, [])
            turn = _Turn(request, torch.cat(states[first:row]), guessed)
            if request.reads_prompt:
                request.read(request.sequences[0].computed, turn.hidden_BD[:1], self._runner.logits)
            for sequence in request.sequences:
                sequence.advance(self._scheduler.pool, 1)
            turns.append(turn)
        return turns

    def _guess(self, decoding: list[Request]) -> dict[Request, list[int]]:
        """What may follow, for each completion."""
        requests = [request for request in decoding if isinstance(request, Generation)]
        if self._drafter is None or not requests:
            return {}
        with self._changed:
            # The last token that a request may write needs no guess: it comes from the output for the one before.
            limits = [
                self._scheduler.room_for_guesses(request.sequences[0], min(self._drafter.tokens, request.room - 1))
                for request in requests
            ]
        guesses = self._drafter.propose(requests, limits)
        for request, tokens in zip(requests, guesses, strict=True):
            request.drafted += len(tokens)
        return dict(zip(requests, guesses, strict=True))

    def _choose(self, turns: list[_Turn]) -> None:
        """One lm_head for everybody, then each request goes on in its own way."""
        logits_NV = self._runner.logits(torch.cat([turn.hidden_BD for turn in turns]))
        drawn: list[tuple[_Turn, Generation, int]] = []
        row = 0
        for turn in turns:
            if isinstance(turn.request, Generation):
                drawn.append((turn, turn.request, row))
            elif isinstance(turn.request, SearchRequest):
                self._branch(turn.request, logits_NV[row : row + len(turn.hidden_BD)], turn.hidden_BD)
            row += len(turn.hidden_BD)
        while drawn:
            drawn = self._draw(logits_NV, drawn)

    def _draw(
        self, logits_NV: Tensor, drawn: list[tuple[_Turn, Generation, int]]
    ) -> list[tuple[_Turn, Generation, int]]:
        """A token for each completion by the output of its row; returns those whose guess was the token, with the next
        row, whose output then counts."""
        rows = [row for _, _, row in drawn]
        # Copying the rows would cost as much as choosing among them.
        rows_NV = logits_NV if rows == list(range(len(logits_NV))) else logits_NV[rows]
        tokens = choose(rows_NV, [request.sampler for _, request, _ in drawn])
        right = []
        for (turn, request, row), token in zip(drawn, tokens, strict=True):
            guessed = turn.guesses[turn.written : turn.written + 1] == [token]
            turn.written += 1
            request.accepted += guessed
            observe(logits_NV[row], token, request.sampler)
            request.accept(token, logits_NV[row])
            if guessed and not request.finished and not request.forced:
                right.append((turn, request, row + 1))
        return right

    def _settle(self, turns: list[_Turn]) -> None:
        """Count the right guesses as computed; the next tokens overwrite the wrong ones."""
        for turn in turns:
            if self._drafter is not None and turn.written:
                (sequence,) = turn.request.sequences
                start = sequence.computed - 1
                sequence.advance(self._scheduler.pool, turn.written - 1)
                self._drafter.read_accepted(sequence, start, turn.hidden_BD[: turn.written])

    def _branch(self, request: SearchRequest, logits_BV: Tensor, hidden_BD: Tensor) -> None:
        if children := request.search.expand(logits_BV, hidden_BD):
            request.branch(children, self._scheduler.pool, self._runner)
        else:
            request.finish()
