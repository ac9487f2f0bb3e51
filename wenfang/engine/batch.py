"""One step of the running batch: parts of prompts, then the next token of every request that is ready."""

import threading

import torch
from torch import Tensor

from wenfang.engine.request import Generation, Request, SearchRequest
from wenfang.engine.runner import Runner
from wenfang.engine.sampling import choose, observe
from wenfang.engine.scheduler import Scheduler

CHUNK = 256
"""Prompt tokens computed between two tokens of the running requests: a long prompt delays them no longer."""


class Batch:
    """The requests that run together. Only the engine's thread may step.

    Args:
        runner: calls the model.
        scheduler: says who runs.
        changed: the lock on the scheduler.
    """

    def __init__(self, runner: Runner, scheduler: Scheduler, changed: threading.Condition) -> None:
        self._runner, self._scheduler, self._changed = runner, scheduler, changed

    def step(self) -> None:
        """Some of the prompts still to be read, then one token for every request that is ready."""
        done: list[tuple[Request, Tensor]] = []
        with self._changed:
            prefills = list(self._scheduler.prefills(CHUNK))
        for request, sequence, tokens in prefills:
            if request not in self._scheduler.running:  # It stepped back for another one.
                continue
            start = sequence.computed
            (hidden_TD,) = self._runner.run([sequence], tokens)
            sequence.advance(self._scheduler.pool, tokens)
            request.read(start, hidden_TD, self._runner.logits)
            if not sequence.waiting:
                done.append((request, hidden_TD[-1:]))
        with self._changed:
            decoding = self._scheduler.decodes()
        if rows := [sequence for request in decoding for sequence in request.sequences]:
            hidden_ND = self._runner.run(rows, 1)[:, 0]
            for request in decoding:
                if request.reads_prompt:
                    request.read(
                        request.sequences[0].computed,
                        hidden_ND[rows.index(request.sequences[0])][None],
                        self._runner.logits,
                    )
            for sequence in rows:
                sequence.advance(self._scheduler.pool, 1)
            done += zip(decoding, hidden_ND.split([len(r.sequences) for r in decoding]), strict=True)
        if done:
            self._choose(done)

    def _choose(self, done: list[tuple[Request, Tensor]]) -> None:
        """One lm_head for everybody, then each request goes on in its own way."""
        counts = [len(hidden_ND) for _, hidden_ND in done]
        logits_NV = self._runner.logits(torch.cat([hidden_ND for _, hidden_ND in done]))
        drawn: list[tuple[Generation, Tensor]] = []
        for (request, hidden_BD), logits_BV in zip(done, logits_NV.split(counts), strict=True):
            if isinstance(request, Generation):
                drawn.append((request, logits_BV))
            elif isinstance(request, SearchRequest):
                self._branch(request, logits_BV, hidden_BD)
        if drawn:
            tokens = choose(torch.cat([row_1V for _, row_1V in drawn]), [request.sampler for request, _ in drawn])
            for (request, row_1V), token in zip(drawn, tokens, strict=True):
                observe(row_1V[0], token, request.sampler)
                request.accept(token, row_1V[0])
        with self._changed:
            for request, _ in done:
                if request.finished:
                    self._scheduler.drop(request)

    def _branch(self, request: SearchRequest, logits_BV: Tensor, hidden_BD: Tensor) -> None:
        if children := request.search.expand(logits_BV, hidden_BD):
            request.branch(children, self._scheduler.pool, self._runner)
        else:
            request.finish()
