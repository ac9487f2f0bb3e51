"""What a running stage tells people: a progress line with ETA, notices, and numbers kept in a file."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from wenfang.core.artifact import write_atomically
from wenfang.core.language import say

PLAIN_INTERVAL_S = 10.0
"""How often progress is printed where no terminal can redraw a line."""


class Track:
    """One long piece of work in progress. `update` says how far it is and what it measured."""

    def __init__(self, console: Console, progress: Progress | None, label: str, total: float) -> None:
        self._console = console
        self._progress = progress
        self._label = label
        self._total = total
        self._started = self._printed = time.monotonic()
        self._first_done = 0.0
        self._updates = 0
        self._task: TaskID | None = progress.add_task(label, total=total, note="") if progress else None

    def announce(self, note: str) -> None:
        """Say at once what the first piece of the work waits for."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, note=note)
        else:
            self._print(f"{self._label} {note}")

    def update(self, done: float, note: str = "") -> None:
        """Report that `done` of the total is finished; `note` holds live figures such as loss and tokens/s."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, note=note)
            return
        now = time.monotonic()
        # Neither resumed work nor the first piece, which may have waited for a compiler, counts towards the speed.
        if self._updates < 2:
            self._first_done, self._started, self._updates = done, now, self._updates + 1
        if now - self._printed >= PLAIN_INTERVAL_S or done >= self._total:
            self._printed = now
            gained = done - self._first_done
            left = (self._total - done) * (now - self._started) / gained if gained else float("nan")
            eta = say(zh="剩餘", en="ETA") + f" {left:.0f} s" if done < self._total and gained else ""
            self._print(f"{self._label} {done:,.0f}/{self._total:,.0f} {note} {eta}".rstrip())

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


class _Bars(Progress):
    """Bars with each note on a line of its own below, where a narrow terminal would cut it off."""

    def get_renderables(self) -> Iterator[RenderableType]:
        for task in self.tasks:
            yield self.make_tasks_table([task])
            if task.fields["note"]:
                yield Text(task.fields["note"])


class Reporter:
    """Speaks to the terminal and keeps metrics; every stage gets one.

    Args:
        metrics_path: the `metrics.jsonl` that `metric` appends to; None keeps no metrics.
        console: where people read; standard error by default, so that standard output stays for results.
    """

    def __init__(self, *, metrics_path: Path | None = None, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._metrics_path = metrics_path

    @contextmanager
    def track(self, label: str, total: float) -> Iterator[Track]:
        """Show a progress line while the block runs: a redrawn bar on a terminal, a line every 10 s elsewhere."""
        if not self.console.is_terminal:
            yield Track(self.console, None, label, total)
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn(say(zh="剩餘", en="ETA")),
            TimeRemainingColumn(),
        )
        with _Bars(*columns, console=self.console) as progress:
            yield Track(self.console, progress, label, total)

    def notice(self, text: str) -> None:
        """Tell the user something worth knowing that is not a problem."""
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def warn(self, text: str) -> None:
        """Tell the user that something was overridden, skipped or is slower than it could be."""
        self.console.print(f"⚠ {text}", style="yellow", highlight=False, soft_wrap=True, markup=False)

    def metric(self, **values: int | float | str) -> None:
        """Append one line of numbers to `metrics.jsonl`."""
        if self._metrics_path is None:
            return
        with self._metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values, ensure_ascii=False) + "\n")

    def rewind(self, step: int) -> None:
        """Drop metrics of steps after `step`: what a resumed run is about to measure again."""
        if self._metrics_path is None or not self._metrics_path.exists():
            return
        kept = []
        for line in self._metrics_path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                if json.loads(line).get("step", 0) <= step:
                    kept.append(line + "\n")
            except json.JSONDecodeError:  # The last line of a killed run may be cut off.
                break
        write_atomically(self._metrics_path, "".join(kept).encode())
