"""The training page: curves of each stage, moving while a run goes on, and the closing table."""

from nicegui import ui

from wenfang.core.errors import InputError
from wenfang.studio.account import account_html
from wenfang.studio.chart import CURVES, curve_options
from wenfang.studio.run import METRICS, Found, Metrics, StageView
from wenfang.studio.words import Words

REFRESH_S = 2.0


class TrainingView:
    """Draws what the run folder says now; `refresh` brings it up to date."""

    def __init__(self, found: Found, words: Words) -> None:
        self._found = found
        self._words = words
        self._stages: list[StageView] = []
        self._metrics: dict[str, Metrics] = {}
        self._charts: dict[tuple[str, str], ui.echart] = {}
        self._container = ui.element("section").classes("training").props(f'aria-label="{words("training")}"')
        self._shown = False

    def set_shown(self, shown: bool) -> None:
        """Show or hide; nothing is read or drawn before it is first shown."""
        self._shown = shown
        self._container.set_visibility(shown)
        self.refresh()

    def refresh(self) -> None:
        """Read what is new. Rebuilds when a stage began or ended, else only moves the lines."""
        if not self._shown:
            return
        try:
            stages = self._found.stages()
        except InputError as error:
            self._stages = []
            self._container.clear()
            with self._container:
                ui.label(str(error)).classes("failure").props('role="alert"')
            return
        if stages != self._stages:
            self._stages = stages
            self._rebuild()
            return
        for stage in stages:
            metrics = self._metrics[stage.name]
            if metrics.refresh():
                self._redraw(stage.name, metrics)

    def _rebuild(self) -> None:
        self._container.clear()
        self._metrics = {stage.name: Metrics(stage.folder / METRICS) for stage in self._stages}
        self._charts = {}
        with self._container:
            trained = [stage for stage in self._stages if self._draw_stage(stage)]
            if not trained:
                ui.label(self._words("no_curves")).classes("quiet-note")
            if any(stage.seconds is not None for stage in self._stages):
                with ui.element("div").classes("account-frame"):
                    ui.html(account_html(self._stages, self._words))

    def _draw_stage(self, stage: StageView) -> bool:
        """Charts of one stage; whether it has measured anything."""
        metrics = self._metrics[stage.name]
        metrics.refresh()
        curves = [(name, pair) for name, pair in CURVES if metrics.series.get(name)]
        if not curves:
            return False
        words = self._words
        with ui.element("section").classes("stage").props(f'aria-label="{words("curves")}: {stage.name}"'):
            with ui.element("h2"):
                ui.label(stage.name)
                if stage.state != "finished":
                    ui.label(words("running" if stage.state == "running" else "unfinished")).classes(stage.state)
            with ui.element("div").classes("charts"):
                for name, pair in curves:
                    with ui.element("figure").classes("chart"):
                        with ui.element("figcaption"):
                            ui.label(words(name))
                        options = curve_options(name, metrics.series[name], metrics.series.get(pair or "", []), words)
                        self._charts[stage.name, name] = ui.echart(options, renderer="svg")
        return True

    def _redraw(self, stage: str, metrics: Metrics) -> None:
        if not any((stage, name) in self._charts for name, _ in CURVES):
            self._rebuild()  # Its first numbers: the charts do not exist yet.
            return
        for name, pair in CURVES:
            chart = self._charts.get((stage, name))
            if chart is not None:
                options = curve_options(name, metrics.series[name], metrics.series.get(pair or "", []), self._words)
                chart.options.update(options)
                chart.update()
