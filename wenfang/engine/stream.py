"""A request's pieces for the one who waits for them."""

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol, Self

from wenfang.core.errors import WenfangError
from wenfang.engine.completion import Delta
from wenfang.engine.request import Request


class Stream:
    """Iterates over a request's pieces as they come; closing it, at any time, cancels the request."""

    def __init__(self, request: Request, cancel: "CancelRequest") -> None:
        self._request = request
        self._cancel = cancel
        self._ended = False

    def __iter__(self) -> Iterator[Delta]:
        return self

    def __next__(self) -> Delta:
        """The next piece, waiting for it.

        Raises:
            WenfangError: the engine was closed or failed, or the finished text does not fulfil its grammar.
        """
        if self._ended:
            raise StopIteration
        item = self._request.events.get()
        self._ended = isinstance(item, Exception) or item.finish_reason is not None
        if isinstance(item, Exception):
            raise item
        if item.finish_reason == "stop":  # Here, and not in the engine's thread, which must not wait for it.
            self._request.check()
        return item

    def rest(self) -> list[Delta]:
        """All pieces to the end. Waiting for each would take a processor from the engine at every token.

        Raises:
            WenfangError: as iteration.
        """
        self._request.settled.wait()
        return list(self)

    def each(self, take: Callable[[Delta], None]) -> None:
        """Hand every piece to `take`, all but the last in the engine's thread: waking another at every token would
        take longer than choosing it. Returns after the last; `take` must be quick and raise nothing.

        Raises:
            WenfangError: as iteration.
        """
        self._request.listen(take)
        for delta in self.rest():
            take(delta)

    def close(self) -> None:
        """Cancel what is not finished and free its place at once. May be called from any thread; one that waits for
        the next piece is told with a WenfangError."""
        if not self._ended:
            self._ended = True
            self._cancel(self._request)
            self._request.events.put(WenfangError("cancelled"))  # Wakes a thread that waits for the next piece,
            self._request.settled.set()  # or for all of them.

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Not `close`: a collection may run inside the scheduler itself. The engine looks at the flag before each step.
        self._request.cancelled = True


class CancelRequest(Protocol):
    """What a stream calls when nobody listens any more."""

    def __call__(self, request: Request) -> None: ...
