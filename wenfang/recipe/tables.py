"""The plan before a run and the account after it, as tables for people."""

from collections.abc import Sequence

from rich.table import Table

from wenfang.core.artifact import Summary
from wenfang.core.forecast import Forecast
from wenfang.core.language import say
from wenfang.recipe.figures import duration, size
from wenfang.recipe.plan import Plan, State
from wenfang.recipe.run import StepResult


def plan_table(plan: Plan) -> Table:
    """Each stage with what would be done and what it would cost; totals below."""
    words = {
        State.KEPT: say(zh="沿用", en="kept"),
        State.NEW: say(zh="要跑", en="to run"),
        State.STARTED: say(zh="接續", en="to continue"),
        State.DAMAGED: say(zh="損壞，重做", en="damaged, to run again"),
    }
    table = _table(
        say(zh="階段", en="stage"),
        say(zh="使用", en="uses"),
        "",
        right=(say(zh="時間", en="time"), say(zh="記憶體", en="memory"), say(zh="磁碟", en="disk")),
    )
    for step in plan.steps:
        table.add_row(step.id, step.stage.name, words[step.state], *_cost(step.forecast))
    forecasts = plan.forecasts.values()
    total = Forecast(
        seconds=sum(forecast.seconds for forecast in forecasts),
        memory_bytes=max((forecast.memory_bytes for forecast in forecasts), default=0),
        disk_bytes=sum(forecast.disk_bytes for forecast in forecasts),
    )
    table.add_section()
    table.add_row(say(zh="合計", en="total"), "", "", *_cost(total if forecasts else None))
    return table


def result_table(results: Sequence[StepResult]) -> Table:
    """Each stage with its time and what it achieved; their time together below."""
    table = _table(say(zh="階段", en="stage"), "", right=(say(zh="時間", en="time"),))
    table.add_column(say(zh="成果", en="result"), overflow="fold")
    for result in results:
        done = say(zh="沿用", en="kept") if result.kept else say(zh="完成", en="made")
        table.add_row(result.id, done, duration(result.manifest.seconds), summary_line(result.manifest.summary))
    table.add_section()
    seconds = sum(result.manifest.seconds for result in results)
    table.add_row(say(zh="合計", en="total"), "", duration(seconds), "")
    return table


def summary_line(summary: Summary) -> str:
    """A stage's headline results in one line: `loss 4.213 · tokens 1,234,567`."""
    return " · ".join(f"{key.replace('_', ' ')} {_figure(value)}" for key, value in summary.items())


def _table(*left: str, right: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in left:
        table.add_column(title, overflow="fold")
    for title in right:
        table.add_column(title, justify="right", no_wrap=True)
    return table


def _cost(forecast: Forecast | None) -> tuple[str, str, str]:
    if forecast is None:
        return "–", "–", "–"
    return duration(forecast.seconds), size(forecast.memory_bytes), size(forecast.disk_bytes)


def _figure(value: float | str) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else value
