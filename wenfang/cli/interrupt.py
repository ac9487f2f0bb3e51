"""Ctrl-C and `kill` end long work quietly, with its progress kept."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from wenfang.core.errors import WenfangError
from wenfang.core.language import say


class Terminated(KeyboardInterrupt):
    """SIGTERM, treated as Ctrl-C is: libraries clean up for one as for the other."""


class Interrupted(WenfangError):
    """The user stopped the work; `exit_code` is that of the signal."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(
            say(zh="已停止。再執行同一個指令就會接續。", en="Stopped. Run the same command again to continue.")
        )
        self.exit_code = exit_code


@contextmanager
def resumable() -> Iterator[None]:
    """Work that keeps its progress: a signal ends it with a line that says so.

    Raises:
        Interrupted: SIGINT (exit code 130) or SIGTERM (143) came.
    """
    try:
        with unwinding():
            yield
    except Terminated:
        raise Interrupted(128 + signal.SIGTERM) from None
    except KeyboardInterrupt:
        raise Interrupted(128 + signal.SIGINT) from None


@contextmanager
def unwinding() -> Iterator[None]:
    """Within the block SIGTERM raises `Terminated`, so that what was opened is closed."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated
