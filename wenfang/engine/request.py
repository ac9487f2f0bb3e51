"""What a caller has asked for, under way: its rows in the batch and what has been written."""

import queue
import threading
from collections import Counter
from collections.abc import Callable
from itertools import takewhile
from typing import Protocol

from torch import Tensor

from wenfang.engine.adapters import Adapter
from wenfang.engine.blocks import BlockPool
from wenfang.engine.completion import Delta, TokenLogprob, token_logprobs
from wenfang.engine.params import SamplingParams
from wenfang.engine.runner import Runner
from wenfang.engine.sampling import Sampler
from wenfang.engine.search import Child, Search
from wenfang.engine.sequence import Sequence
from wenfang.engine.text import TextStream


class Head(Protocol):
    """The model's output projection: hidden_ND → logits_NV."""

    def __call__(self, hidden_ND: Tensor) -> Tensor: ...


class Request:
    """One or several rows of the batch that belong together.

    Args:
        prompt: token ids.
        width: most rows it will ever have.
        adapter: what is added to the model for it.
    """

    def __init__(self, prompt: list[int], width: int = 1, adapter: Adapter | None = None) -> None:
        self.prompt = prompt
        self.width = width
        self.arrival = -1
        self.sequences = [Sequence(list(prompt), adapter=adapter)]
        self.events: queue.SimpleQueue[Delta | Exception] = queue.SimpleQueue()
        self.settled = threading.Event()
        """Nothing more will come."""
        self.cancelled = False
        self.finished = False
        self.cached_tokens: int | None = None
        """Tokens of the prompt that the cache held when the request was first let in; None before."""
        self._prompt_read = 0
        self._telling = threading.Lock()
        self._listener: Callable[[Delta], None] | None = None

    @property
    def reads_prompt(self) -> bool:
        """Whether it still needs the model's output for every token of the prompt, cached or not."""
        return self._wants_prompt and self._prompt_read < len(self.prompt)

    @property
    def _wants_prompt(self) -> bool:
        return False

    def read(self, start: int, hidden_TD: Tensor, head: Head) -> None:
        """Take the output for prompt tokens from `start` on; a part seen before, as after a preemption, is skipped."""
        skip = self._prompt_read - start
        if self._wants_prompt and skip < len(hidden_TD):
            self._read(hidden_TD[skip:], head)
            self._prompt_read = start + len(hidden_TD)

    def _read(self, hidden_TD: Tensor, head: Head) -> None:
        raise NotImplementedError

    def check(self) -> None:
        """Validate what has been written, once it is finished.

        Raises:
            BrokenPromise: it is not what was asked for.
        """

    def fail(self, error: Exception) -> None:
        """Tell the caller that nothing more will come."""
        self.finished = True
        self.tell(error)

    def tell(self, event: Delta | Exception) -> None:
        """Put a piece, or what went wrong, before the caller; the last one once the request is finished."""
        with self._telling:
            if self._listener is not None and not self.finished and isinstance(event, Delta):
                self._listener(event)
            else:
                self.events.put(event)
        if self.finished:
            self.settled.set()

    def listen(self, take: Callable[[Delta], None]) -> None:
        """From now on hand the pieces to `take` at once, but not the last: whoever reads it may have to validate the
        whole. Those that nobody has read yet come first."""
        with self._telling:
            if not self.finished:
                while not self.events.empty():
                    if isinstance(event := self.events.get(), Delta):
                        take(event)
                self._listener = take


class Generation(Request):
    """A completion drawn token by token."""

    def __init__(
        self,
        prompt: list[int],
        sampler: Sampler,
        limit: int,
        text: TextStream,
        end_id: int,
        adapter: Adapter | None = None,
    ) -> None:
        super().__init__(prompt, adapter=adapter)
        self.sampler = sampler
        self.params: SamplingParams = sampler.params
        self.drafted = 0
        self.accepted = 0
        self.forced: list[int] = []
        """Tokens that followed the last drawn one because the grammar left no choice."""
        self._limit = limit
        self._said: list[str] = []
        self._text = text
        self._end_id = end_id
        self._prompt_logprobs: list[TokenLogprob | None] = []

    @property
    def written(self) -> list[int]:
        """Token ids of the completion so far."""
        return self.sampler.written

    @property
    def room(self) -> int:
        """Tokens that may still be written."""
        return self._limit - len(self.written)

    def accept(self, token: int, logits_V: Tensor) -> None:
        """Take in the token that was chosen from these logits."""
        matcher = self.sampler.matcher
        if matcher is not None and (failure := matcher.failure) is not None:
            self.fail(failure)
            return
        self.written.append(token)
        self.forced = self._force(token)
        self.written.extend(self.forced)
        self.sequences[0].tokens += [token, *self.forced]
        logprobs: tuple[TokenLogprob, ...] = ()
        if self.params.logprobs is not None:
            logprobs = tuple(token_logprobs(logits_V[None], [token], self.params.logprobs))
        prompt_logprobs, self._prompt_logprobs = tuple(self._prompt_logprobs), []
        ended = token == self._end_id or (matcher is not None and matcher.ended)
        text, reason = "".join(map(self._text.push, [token, *self.forced])) if token != self._end_id else "", None
        if ended or self._text.stopped or not self.room:
            text += self._text.finish()
            reason = "stop" if ended or self._text.stopped else "length"
            self.finished = True
        self._said.append(text)
        guesses = self.drafted, self.accepted
        cached = self.cached_tokens or 0
        self.tell(Delta(text, reason, len(self.written), logprobs, prompt_logprobs, *guesses, cached))

    def check(self) -> None:
        """Validate the finished text."""
        if self.params.grammar is not None:
            self.params.grammar.check("".join(self._said))

    def _force(self, token: int) -> list[int]:
        """Tell the grammar of a token; returns the tokens that must follow, which nobody needs to draw."""
        matcher = self.sampler.matcher
        if matcher is None or token == self._end_id:
            return []
        matcher.consume(token)
        if self.params.logprobs is not None:  # What is not drawn has no log-probability.
            return []
        forced = list(takewhile(lambda id_: id_ != self._end_id, matcher.forced()))[: self.room]
        for id_ in forced:
            matcher.consume(id_)
        return forced

    @property
    def _wants_prompt(self) -> bool:
        return self.params.prompt_logprobs

    def _read(self, hidden_TD: Tensor, head: Head) -> None:
        if not self._prompt_logprobs:
            self._prompt_logprobs.append(None)
        targets = self.prompt[len(self._prompt_logprobs) :][: len(hidden_TD)]
        logits_TV = head(hidden_TD)[: len(targets)]
        self._prompt_logprobs += token_logprobs(logits_TV, targets, self.params.logprobs or 0)


class SearchRequest(Request):
    """Several continuations of one prompt that a search keeps, drops and branches."""

    def __init__(self, prompt: list[int], search: Search, adapter: Adapter | None = None) -> None:
        super().__init__(prompt, search.width, adapter)
        self.search = search

    def branch(self, children: list[Child], pool: BlockPool, runner: Runner) -> None:
        """Let the rows continue as the search decided. A row with several children is forked, one with none ends."""
        parents = Counter(parent for parent, _ in children)
        rows = {}
        for parent, count in parents.items():
            sequence = self.sequences[parent]
            rows[parent] = [sequence, *(runner.fork(sequence, pool) for _ in range(count - 1))]
        for row, sequence in enumerate(self.sequences):
            if row not in parents:
                sequence.release(pool)
        self.sequences = []
        for parent, token in children:
            self.sequences.append(rows[parent].pop())
            self.sequences[-1].tokens.append(token)

    def finish(self) -> None:
        """Tell the caller that the results are there."""
        self.finished = True
        self.tell(Delta("", "stop", 0))

    @property
    def _wants_prompt(self) -> bool:
        return self.search.reads_prompt

    def _read(self, hidden_TD: Tensor, head: Head) -> None:
        self.search.read(hidden_TD)
