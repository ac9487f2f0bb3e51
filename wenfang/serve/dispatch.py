"""Between the event loop and the engine: worker threads wait, the engine's own hands over, coroutines read."""

import asyncio
import functools
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from wenfang.core.errors import InputError, WenfangError
from wenfang.core.language import say
from wenfang.serve.errors import EngineFailure, Overloaded

if TYPE_CHECKING:
    from wenfang.engine import Delta, SamplingParams, TextEngine
    from wenfang.engine.interface import Deltas

Job = tuple[list[int], "SamplingParams"]
"""A prompt and how to continue it."""

MAX_GENERATIONS = 64
"""How many choices may be in progress or waiting for the engine's batch at once; each holds one thread."""

MAX_CALLS = 8
"""How many requests for embeddings may be under way at once."""

FRESH_ANSWER_S = 5.0
"""A token this recent is proof enough that the model answers."""

PROBE = "春"


class Meter(Protocol):
    """Who wants to know how fast answers come."""

    def first_token(self, model: str, seconds: float) -> None: ...

    def next_token(self, model: str, seconds: float) -> None: ...


class Generation:
    """One or more choices being written. Iterate for `(choice, delta)` pairs; leaving the block cancels the rest.

    Belongs to the event loop it was made on. A choice's last delta carries its `finish_reason`.
    """

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        jobs: Sequence[Callable[[], "Deltas"]],
        on_delta: Callable[[float, bool], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._deltas: deque[tuple[int, Delta]] = deque()
        self._told = False
        self._cancelled = threading.Event()
        self._stopped = set[int]()
        self._on_delta = on_delta
        self._streams: dict[int, Deltas] = {}
        self._workers: list[Future[None]] = [pool.submit(self._write, i, job) for i, job in enumerate(jobs)]
        for worker in self._workers:
            worker.add_done_callback(lambda _: self._tell())

    def _write(self, choice: int, job: Callable[[], "Deltas"]) -> None:
        """See one choice to its end, on a worker thread."""
        last, first = time.monotonic(), True

        def take(delta: "Delta") -> None:
            nonlocal last, first
            now = time.monotonic()
            self._on_delta(now - last, first)
            last, first = now, False
            self._deltas.append((choice, delta))
            self._tell()

        # Closing is what frees the choice's place in the engine's batch.
        with closing(job()) as deltas:
            self._streams[choice] = deltas
            if not self._cancelled.is_set():
                deltas.each(take)

    def _tell(self) -> None:
        """Wake the reader, once for all that has arrived since it last looked."""
        if not self._told:
            self._told = True
            with suppress(RuntimeError):  # The loop is closed: the server has stopped and nobody reads on.
                self._loop.call_soon_threadsafe(self._arrived.set)

    async def ready(self) -> None:
        """Wait until a delta can be read or all is written.

        Raises:
            WenfangError: the engine refused the request or failed, and all it wrote before has been read.
        """
        while True:
            # In this order: whatever happens after these lines wakes us again.
            self._arrived.clear()
            self._told = False
            finished = not self.unfinished
            if self._deltas:
                return
            self._raise_failure()
            if finished:
                return
            await self._arrived.wait()

    async def __aiter__(self) -> AsyncIterator[tuple[int, "Delta"]]:
        """Yield deltas as they are written, choices interleaved. Raises what `ready` raises."""
        while True:
            await self.ready()
            if not self._deltas:
                return
            while self._deltas:
                yield self._deltas.popleft()

    def _raise_failure(self) -> None:
        for choice, worker in enumerate(self._workers):
            ended = worker.done() and not worker.cancelled() and choice not in self._stopped
            error = worker.exception() if ended else None
            if isinstance(error, WenfangError):
                raise error
            if error is not None:
                detail = f"{type(error).__name__}: {error}"
                raise EngineFailure(
                    say(zh=f"模型在書寫時發生錯誤：{detail}", en=f"The model failed while writing: {detail}")
                ) from error

    @property
    def unfinished(self) -> int:
        """How many choices are still being written or waiting."""
        return sum(not worker.done() for worker in self._workers)

    def stop(self, choice: int) -> None:
        """Write no more of one choice; what it has already written is still read."""
        if not self._workers[choice].done():
            self._stopped.add(choice)
            self._streams[choice].close()

    def cancel(self) -> None:
        """Stop writing after the token in progress."""
        self._cancelled.set()
        for worker in self._workers:
            worker.cancel()
        if self.unfinished:
            for stream in list(self._streams.values()):
                stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


class Dispatcher:
    """Runs an engine for many readers on one event loop, and refuses more than it can hold.

    Args:
        engine: where every token comes from.
        max_generations: the most choices in progress at once.
        meter: told about every piece that is written.
    """

    def __init__(
        self, engine: "TextEngine", *, max_generations: int = MAX_GENERATIONS, meter: Meter | None = None
    ) -> None:
        self.engine = engine
        self.meter = meter
        self._max_generations = max_generations
        # One thread more than requests may hold, so that a health probe never waits behind them.
        self._pool = ThreadPoolExecutor(max_generations + 1, thread_name_prefix="wenfang-generation")
        self._running: list[Generation] = []
        self._last_answer = float("-inf")
        self._calls = 0
        self._probing = asyncio.Lock()

    def start(self, prompt: list[int], params: Sequence["SamplingParams"]) -> Generation:
        """Begin one choice for each of `params`, all continuing the same prompt. Raises what `start_all` raises."""
        return self.start_all([(prompt, p) for p in params])

    def start_all(self, jobs: Sequence[Job], *, adapter: str | None = None) -> Generation:
        """Begin one choice for each job, by the model with that adapter.

        Raises:
            InputError: more than the server ever writes at once.
            Overloaded: too many are in progress; nothing was started.
        """
        if len(jobs) > self._max_generations:
            raise InputError(
                say(
                    zh=f"伺服器同時最多寫 {self._max_generations} 則，這個請求要 {len(jobs)} 則。",
                    en=f"The server writes at most {self._max_generations} answers at once; this asks for {len(jobs)}.",
                )
            )
        self._running = [generation for generation in self._running if generation.unfinished]
        if sum(generation.unfinished for generation in self._running) + len(jobs) > self._max_generations:
            raise Overloaded(
                say(
                    zh=f"伺服器同時最多寫 {self._max_generations} 則，現在已滿。請稍後再試。",
                    en=f"The server writes at most {self._max_generations} answers at once and is full. "
                    "Try again in a moment.",
                )
            )
        generation = self._begin(jobs, adapter)
        self._running.append(generation)
        return generation

    @contextmanager
    def place(self) -> Iterator[None]:
        """Room for one call of the engine that writes nothing.

        Raises:
            Overloaded: too many are under way.
        """
        if self._calls >= MAX_CALLS:
            raise Overloaded(say(zh="伺服器已滿。請稍後再試。", en="The server is full. Try again in a moment."))
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1

    async def probe(self, *, timeout_s: float = 10.0) -> None:
        """Make sure that the model answers: a token was written just now, or one is written for this question.

        Raises:
            WenfangError: the engine failed, or wrote nothing within `timeout_s`.
        """
        from wenfang.engine import SamplingParams

        async with self._probing:
            if time.monotonic() - self._last_answer < FRESH_ANSWER_S:
                return
            prompt = self.engine.tokenizer.encode(PROBE)
            with self._begin([(prompt, SamplingParams(max_tokens=1))]) as generation:
                try:
                    await asyncio.wait_for(generation.ready(), timeout_s)
                except TimeoutError:
                    raise EngineFailure(
                        say(
                            zh=f"模型在 {timeout_s:g} 秒內沒有回答。",
                            en=f"The model gave no answer within {timeout_s:g} s.",
                        )
                    ) from None

    def close(self) -> None:
        """Cancel what is being written and let the worker threads end."""
        for generation in self._running:
            generation.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def unfinished(self) -> int:
        """Choices being written or waiting."""
        return sum(generation.unfinished for generation in self._running)

    def _begin(self, jobs: Sequence[Job], adapter: str | None = None) -> Generation:
        chosen = {} if adapter is None else {"adapter": adapter}
        calls = [functools.partial(self.engine.stream, prompt, params, **chosen) for prompt, params in jobs]
        return Generation(self._pool, calls, self._answered)

    def _answered(self, seconds: float, first: bool) -> None:
        self._last_answer = time.monotonic()
        if self.meter is not None:
            tell = self.meter.first_token if first else self.meter.next_token
            tell(self.engine.name, seconds)
