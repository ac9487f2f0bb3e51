"""What a running stage tells: a line every ten seconds without a terminal, a bar on one, and numbers in a file."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from wenfang.core.report import PLAIN_INTERVAL_S, Reporter


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("wenfang.core.report.time.monotonic", clock)
    return clock


def _reporter(*, terminal: bool = False) -> tuple[Reporter, io.StringIO]:
    out = io.StringIO()
    return Reporter(console=Console(file=out, force_terminal=terminal, width=120)), out


def _work(clock: Clock, *, start: int, seconds_each: float) -> list[str]:
    """Report each of a hundred steps from `start` on; returns the lines that were printed."""
    reporter, out = _reporter()
    with reporter.track("training", 100) as track:
        for done in range(start, 101):
            track.update(done, f"loss {done / 100:.2f}")
            clock.now += seconds_each
    return out.getvalue().splitlines()


def test_without_a_terminal_a_line_comes_every_ten_seconds_and_at_the_end(clock: Clock) -> None:
    lines = _work(clock, start=1, seconds_each=0.5)
    assert len(lines) == 99 * 0.5 // PLAIN_INTERVAL_S + 1
    assert lines[0] == "training 21/100 loss 0.21 ETA 40 s"
    assert lines[1] == "training 41/100 loss 0.41 ETA 30 s"
    assert lines[-1] == "training 100/100 loss 1.00"


def test_resumed_work_does_not_count_towards_the_speed(clock: Clock) -> None:
    assert _work(clock, start=60, seconds_each=2)[0] == "training 65/100 loss 0.65 ETA 70 s"


def test_short_work_is_one_line(clock: Clock) -> None:
    assert _work(clock, start=1, seconds_each=0.01) == ["training 100/100 loss 1.00"]


def test_on_a_terminal_a_bar_is_drawn_with_its_note() -> None:
    reporter, out = _reporter(terminal=True)
    with reporter.track("training", 50) as track:
        track.update(25, "loss 4.20 · 9,000 tokens/s")
    shown = out.getvalue()
    assert "training" in shown
    assert "25/50" in shown
    assert "loss 4.20 · 9,000 tokens/s" in shown
    assert "ETA" in shown
    assert "\x1b[" in shown


def test_nothing_is_cut_off_on_a_narrow_terminal() -> None:
    out = io.StringIO()
    note = "loss 4.201 · 1.234 bits/byte · 3.702 bits/char · 12,345 tokens/s · 250 GFLOP/s, MFU 55% · 12.3 GiB"
    console = Console(file=out, force_terminal=True, width=80, color_system=None)
    with Reporter(console=console).track("pretraining [bold]", 20_000) as track:
        track.update(1500, note)
    shown = " ".join(out.getvalue().split())
    assert note in shown
    assert all(part in shown for part in ("pretraining [bold] ", " 1500/20000 ", " ETA "))


@pytest.mark.parametrize("terminal", [False, True])
def test_what_the_first_piece_waits_for_is_said_at_once(terminal: bool) -> None:
    reporter, out = _reporter(terminal=terminal)
    with reporter.track("training", 50) as track:
        track.announce("compiling")
    assert "compiling" in out.getvalue()


@pytest.mark.parametrize("say", [Reporter.notice, Reporter.warn])
def test_brackets_in_what_is_said_stay_brackets(say) -> None:
    reporter, out = _reporter()
    say(reporter, "the list [red] of '/data/[a]/x'")
    assert "the list [red] of '/data/[a]/x'\n" in out.getvalue()


def test_brackets_in_a_label_stay_brackets(clock: Clock) -> None:
    reporter, out = _reporter()
    with reporter.track("reading [red]x.txt", 1) as track:
        track.update(1, "[bold]")
    assert out.getvalue() == "reading [red]x.txt 1/1 [bold]\n"


def test_people_are_spoken_to_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    Reporter().notice("hello")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")


def test_metrics_are_lines_of_a_file(tmp_path: Path) -> None:
    reporter = Reporter(metrics_path=tmp_path / "metrics.jsonl")
    assert not (tmp_path / "metrics.jsonl").exists()
    reporter.metric(step=1, loss=5.25)
    reporter.metric(step=2, form="五絕")
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 1, "loss": 5.25}, {"step": 2, "form": "五絕"}]
    Reporter().metric(step=1)  # Without a file, nothing is kept and nothing fails.
    Reporter().rewind(0)


@pytest.mark.parametrize(
    ("cut_off", "kept"),
    [(b"", [0, 10, 20]), (b'{"step": 20, "los', [0, 10, 20]), (b'{"step": 20, "form": "\xe4\xba', [0, 10, 20])],
    ids=["whole", "cut off", "cut off inside a character"],
)
def test_a_resumed_run_forgets_what_it_will_measure_again(tmp_path: Path, cut_off: bytes, kept: list[int]) -> None:
    path = tmp_path / "metrics.jsonl"
    reporter = Reporter(metrics_path=path)
    for step in (0, 10, 20, 30, 40):
        reporter.metric(step=step, loss=1.0)
    with path.open("ab") as file:
        file.write(cut_off)
    reporter.rewind(20)
    reporter.metric(step=30, loss=0.5)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == [*kept, 30]
    assert lines[-1]["loss"] == 0.5
