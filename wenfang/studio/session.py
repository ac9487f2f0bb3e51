"""One visitor's conversation: what was said, how the model shall write, and the reply being written."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wenfang.core.errors import WenfangError
from wenfang.serve import Dispatcher
from wenfang.studio.prompt import fit_prompt

if TYPE_CHECKING:
    from wenfang.engine import Delta

REDRAW_S = 0.04
"""Pause between two looks at a reply being written: smoother than the eye, kinder to the browser."""


@dataclass
class Turn:
    """A question and the reply to it."""

    question: str
    answer: str = ""
    state: str = "writing"
    """`writing`, `done`, `stopped` by the reader, or `failed`."""
    error: str = ""
    cut_off: bool = False
    """The context ended before the reply did."""
    tokens: int = 0
    seconds: float = 0.0

    def add(self, delta: "Delta") -> None:
        """Take in what was written."""
        self.answer += delta.text
        self.tokens = delta.completion_tokens
        if delta.finish_reason is not None:
            self.state, self.cut_off = "done", delta.finish_reason == "length"


@dataclass
class Wishes:
    """What the visitor has set on the page."""

    draft: str = ""
    form: str = "五言絕句"
    title: str = ""
    rhyme: str = ""
    opening: str = ""
    temperature: float = 1.0
    top_p: float = 0.95
    remember: bool = False
    """Let the model read earlier turns. A poet is taught single requests and writes best without."""


@dataclass
class Session:
    """A conversation with one model. Lives on the event loop of the page."""

    dispatcher: Dispatcher
    wishes: Wishes = field(default_factory=Wishes)
    turns: list[Turn] = field(default_factory=list)
    _task: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a reply is being written."""
        return self._task is not None and not self._task.done()

    def ask(self, question: str, on_change: Callable[[Turn], None]) -> Turn:
        """Begin a new turn; `on_change` is called as its reply grows and once at its end."""
        turn = Turn(question)
        self.turns.append(turn)
        self._task = asyncio.create_task(self._write(turn, on_change))
        return turn

    def stop(self) -> None:
        """End the reply being written where it is."""
        if self._task is not None:
            self._task.cancel()

    async def _write(self, turn: Turn, on_change: Callable[[Turn], None]) -> None:
        from wenfang.engine import SamplingParams

        started = drawn = time.monotonic()
        params = SamplingParams(temperature=self.wishes.temperature, top_p=self.wishes.top_p)
        try:
            prompt = fit_prompt(self.dispatcher.engine, self._earlier(turn), turn.question)
            with self.dispatcher.start(prompt, [params]) as generation:
                async for _, delta in generation:
                    turn.add(delta)
                    turn.seconds = time.monotonic() - started
                    if turn.state == "writing" and time.monotonic() - drawn >= REDRAW_S:
                        on_change(turn)
                        drawn = time.monotonic()
        except WenfangError as error:
            turn.state, turn.error = "failed", str(error)
        finally:
            if turn.state == "writing":
                turn.state = "stopped"
            on_change(turn)

    def _earlier(self, turn: Turn) -> list[tuple[str, str]]:
        if not self.wishes.remember:
            return []
        return [(t.question, t.answer) for t in self.turns if t is not turn and t.state == "done"]
