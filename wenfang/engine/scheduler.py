"""Which requests run now: admission in order of arrival, room for every token, preemption when there is none."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from wenfang.engine.blocks import BlockPool
from wenfang.engine.request import Request
from wenfang.engine.sequence import Sequence


@dataclass(frozen=True)
class Occupancy:
    """Requests in the batch and in front of it, and blocks of the cache."""

    running: int
    waiting: int
    held_blocks: int
    blocks: int


class Scheduler:
    """Waiting and running requests over one pool of blocks. Not thread-safe; the engine holds its lock.

    Args:
        pool: the blocks.
        max_rows: most sequences in the batch.
        reuse: whether a prefix found in the cache may stand for computing it.
    """

    def __init__(self, pool: BlockPool, max_rows: int, *, reuse: bool) -> None:
        self.pool = pool
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._max_rows = max_rows
        self._reuse = reuse
        self._arrivals = 0
        self.preemptions = 0

    @property
    def busy(self) -> bool:
        """Whether anybody is running or waiting."""
        return bool(self.running or self.waiting)

    def add(self, requests: Iterable[Request]) -> None:
        """Queue new requests."""
        for request in requests:
            request.arrival, self._arrivals = self._arrivals, self._arrivals + 1
            self.waiting.append(request)

    def drop(self, request: Request) -> None:
        """Forget a request, wherever it is, and free what it holds."""
        if request in self.running:
            self.running.remove(request)
        elif request in self.waiting:
            self.waiting.remove(request)
        for sequence in request.sequences:
            sequence.release(self.pool)

    def drop_cancelled(self) -> None:
        """Forget every request that nobody waits for any more."""
        for request in [r for r in (*self.running, *self.waiting) if r.cancelled]:
            self.drop(request)

    def clear(self) -> list[Request]:
        """Forget all requests; returns them."""
        everybody = [*self.running, *self.waiting]
        for request in everybody:
            self.drop(request)
        return everybody

    def admit(self) -> None:
        """Let waiting requests in, first come first served, while rows and blocks last."""
        while self.waiting and self.rows + self.waiting[0].width <= self._max_rows:
            request = self.waiting[0]
            if self._reuse and not request.reads_prompt:
                for sequence in request.sequences:
                    sequence.adopt_prefix(self.pool)
            if sum(s.missing_blocks(len(s.tokens)) for s in request.sequences) > self.pool.available:
                for sequence in request.sequences:
                    sequence.release(self.pool)
                return
            self.running.append(self.waiting.popleft())
            for sequence in request.sequences:
                sequence.reserve(self.pool, len(sequence.tokens))
            if request.cached_tokens is None:  # Later, after stepping back, it finds what it has computed itself.
                request.cached_tokens = request.sequences[0].computed

    @property
    def occupancy(self) -> Occupancy:
        """How full it is."""
        pool = self.pool
        return Occupancy(len(self.running), len(self.waiting), pool.count - pool.available, pool.count)

    @property
    def rows(self) -> int:
        """Rows of the batch that the running requests may fill."""
        return sum(request.width for request in self.running)

    def prefills(self, budget: int) -> Iterator[tuple[Request, Sequence, int]]:
        """Parts of prompts to compute now, at most `budget` tokens in all: the request, the sequence, how many."""
        for request in list(self.running):
            # The last token of a row among several is computed together with the others'.
            kept = 1 if len(request.sequences) > 1 else 0
            for sequence in request.sequences:
                if sequence.waiting > 1 and budget > 0:
                    tokens = min(sequence.waiting - kept, budget)
                    budget -= tokens
                    if self._make_room(request, [sequence]):
                        yield request, sequence, tokens

    def decodes(self) -> list[Request]:
        """Requests with exactly one token to compute in each row, and room for it."""
        ready = [r for r in self.running if all(s.waiting == 1 for s in r.sequences)]
        return [r for r in sorted(ready, key=lambda r: r.arrival) if self._make_room(r, r.sequences)]

    def room_for_guesses(self, sequence: Sequence, wanted: int) -> int:
        """Reserve blocks for tokens beyond the known ones, as far as nobody must step back for them."""
        known = len(sequence.tokens)
        while not sequence.reserve(self.pool, known + wanted):
            wanted -= 1
        return wanted

    def _make_room(self, request: Request, sequences: list[Sequence]) -> bool:
        """Reserve blocks for all tokens; if need be the request that came last steps back, possibly this one."""
        while request in self.running:
            if all(sequence.reserve(self.pool, len(sequence.tokens)) for sequence in sequences):
                return True
            self._preempt(max(self.running, key=lambda r: r.arrival))
        return False

    def _preempt(self, request: Request) -> None:
        """Send a request back to the head of the queue; what it has written is computed again later."""
        self.preemptions += 1
        self.running.remove(request)
        for sequence in request.sequences:
            sequence.release(self.pool)
        position = sum(other.arrival < request.arrival for other in self.waiting)
        self.waiting.insert(position, request)

    def check(self) -> None:
        """Compare the pool's books with the sequences.

        Raises:
            CacheError: they differ.
        """
        self.pool.check([s.table for r in self.running for s in r.sequences])
