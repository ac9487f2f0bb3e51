"""The side of the page where a poem is asked for piece by piece and the brush is tempered."""

from collections.abc import Callable

from nicegui import ui
from nicegui.events import ValueChangeEventArguments

from wenfang.core.openai import MAX_TEMPERATURE
from wenfang.studio.controls import text_button
from wenfang.studio.session import Wishes
from wenfang.studio.words import Words
from wenfang.text.rhyme import LEVEL_RHYMES
from wenfang.text.verse import FORMS, Request

MAX_TITLE_CHARACTERS = 20


def compose_request(wishes: Wishes) -> str:
    """The request that the desk's choices amount to, in words."""
    return Request(
        FORMS[wishes.form], wishes.title.strip(), rhyme=wishes.rhyme or None, opening=wishes.opening or None
    ).compose()


class Desk:
    """Choices kept in `wishes`; `fill` and `compose` are called with the request they amount to."""

    def __init__(
        self, wishes: Wishes, words: Words, *, fill: Callable[[str], None], compose: Callable[[str], None]
    ) -> None:
        self._wishes = wishes
        self._words = words
        with ui.element("aside").classes("desk") as self._aside:
            self._toggle = text_button(words("desk"), self._fold, look="desk-toggle")
            self._toggle.props("aria-expanded=false")
            with ui.element("div").classes("desk-body"):
                self._theme(fill, compose)
                self._brush()
                self._legend()

    def _fold(self) -> None:
        """On a narrow page the desk is folded away until asked for."""
        opened = "open" not in self._aside.classes
        self._aside.classes(toggle="open")
        self._toggle.props(f"aria-expanded={str(opened).lower()}")

    def _theme(self, fill: Callable[[str], None], compose: Callable[[str], None]) -> None:
        wishes, words = self._wishes, self._words
        with ui.element("section").props(f'aria-label="{words("desk")}"'):
            with ui.element("h2"):
                ui.label(words("desk"))
            with _field(words("form")):
                forms = {form.name: form.short for form in FORMS.values()}
                _choice(forms, wishes.form, lambda v: setattr(wishes, "form", v), words("form"))
            with _field(words("title")):
                title = ui.input(value=wishes.title, placeholder=words("title_placeholder"))
                title.props(f'dense borderless maxlength={MAX_TITLE_CHARACTERS} aria-label="{words("title")}"')
                title.classes("line-input")
                title.on_value_change(lambda e: setattr(wishes, "title", e.value or ""))
            with _field(words("opening")):
                openings = {"": words("any"), "平": words("level"), "仄": words("oblique")}
                _choice(openings, wishes.opening, lambda v: setattr(wishes, "opening", v), words("opening"))
            with _field(words("rhyme")):
                rhymes = {"": words("any"), **{name: name for name in LEVEL_RHYMES}}
                rhyme = ui.select(rhymes, value=wishes.rhyme)
                rhyme.props(f'dense borderless options-dense behavior=menu aria-label="{words("rhyme")}"')
                rhyme.props('popup-content-class="rhyme-menu"').classes("line-input")
                rhyme.on_value_change(lambda e: setattr(wishes, "rhyme", e.value or ""))
            with ui.element("div").classes("desk-actions"):
                text_button(words("fill"), lambda: fill(compose_request(wishes)), look="quiet-button")
                text_button(words("compose"), lambda: compose(compose_request(wishes)), look="ink-button")

    def _brush(self) -> None:
        wishes, words = self._wishes, self._words
        with ui.element("section").props(f'aria-label="{words("sampling")}"'):
            with ui.element("h2"):
                ui.label(words("sampling"))
            self._slider("temperature", 0.0, MAX_TEMPERATURE)
            self._slider("top_p", 0.05, 1.0)
            with ui.element("div").classes("switch-row"):
                switch = ui.switch(words("remember"), value=wishes.remember).props("dense")
                switch.on_value_change(lambda e: setattr(wishes, "remember", bool(e.value)))
                ui.label(words("remember_hint")).classes("hint")

    def _legend(self) -> None:
        with ui.element("section").props(f'aria-label="{self._words("verse_check")}"'):
            with ui.element("h2"):
                ui.label(self._words("verse_check"))
            ui.label(self._words("marks_legend")).classes("hint")

    def _slider(self, name: str, low: float, high: float) -> None:
        words, value = self._words, getattr(self._wishes, name)
        with ui.element("div").classes("slider-row"):
            with ui.element("div").classes("slider-head"):
                ui.label(words(name))
                shown = ui.label(f"{value:.2f}").classes("figure")

            def change(event: ValueChangeEventArguments[float | None]) -> None:
                if event.value is not None:
                    setattr(self._wishes, name, float(event.value))
                    shown.text = f"{event.value:.2f}"

            slider = ui.slider(min=low, max=high, step=0.05, value=value, on_change=change)
            slider.props(f'aria-label="{words(name)}"')
            ui.label(words(f"{name}_hint")).classes("hint")


def _field(label: str) -> ui.element:
    with ui.element("div").classes("field") as field:
        ui.label(label).classes("field-label")
    return field


def _choice(options: dict[str, str], value: str, choose: Callable[[str], None], label: str) -> None:
    toggle = ui.toggle(options, value=value, on_change=lambda e: choose(e.value))
    toggle.props(f'flat no-caps unelevated role="group" aria-label="{label}"').classes("choice")
