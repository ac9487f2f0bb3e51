"""Signals wait until a step is whole and its state is saved."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Holds back Ctrl-C and `kill` between `hold` and the end of the block; a second one goes through at once.

    Outside the main thread, which alone receives signals, it does nothing.
    """

    def __init__(self) -> None:
        self.pending: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        return self

    def hold(self) -> None:
        """Begin to hold signals back; called after the first step, whose compilation may take long."""
        if not self._before and threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._remember) for number in SIGNALS}

    def deliver(self) -> None:
        """Let the held signal have the effect it would have had."""
        number, self.pending = self.pending, None
        self._release()
        if number is not None:
            signal.raise_signal(number)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.deliver()
        else:
            self._release()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        repeated = self.pending is not None
        self.pending = signal.Signals(number)
        if repeated:
            self.deliver()

    def _release(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
