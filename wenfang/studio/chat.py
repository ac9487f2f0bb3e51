"""The conversation on the page: turns, the poem's sheet, and the line one writes on."""

import functools
from collections.abc import Callable

from nicegui import ui
from nicegui.events import GenericEventArguments

from wenfang.studio.controls import text_button
from wenfang.studio.session import Session, Turn
from wenfang.studio.verse import read_sheet, sheet_html
from wenfang.studio.words import Words
from wenfang.text.verse import FORMS, Request

SEND_ON_ENTER = """(event) => {
  // While an input method composes, Enter chooses a word; Safari reports it only by key code 229.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  emit(event.target.value);
}"""

EXAMPLES = (
    Request(FORMS["五言絕句"], "秋夜"),
    Request(FORMS["七言絕句"], "江上送別", rhyme="陽"),
    Request(FORMS["七言律詩"], "登樓", opening="仄"),
)


class ChatView:
    """Shows a session and takes in what the visitor writes."""

    def __init__(self, session: Session, words: Words) -> None:
        self._session = session
        self._words = words
        self._views: dict[int, TurnView] = {}
        with ui.element("main").classes("chat"):
            self._log = ui.element("div").classes("log")
            self._log.props(f'role="log" aria-live="polite" aria-label="{words("conversation")}"')
            self._compose_line()
        self._draw()

    def send(self, text: str | None) -> None:
        """Ask the model; empty text and a second question while one is being answered are left where they are."""
        if not text or not text.strip() or self._session.busy:
            return
        self._input.value = ""
        turn = self._session.ask(text.strip(), self._changed)
        if len(self._session.turns) == 1:
            self._log.clear()
        self._add(turn)
        self._show_state()

    def fill(self, text: str) -> None:
        """Put a request on the line, to be changed before it is sent."""
        self._input.value = text
        self._input.run_method("focus")

    def _compose_line(self) -> None:
        words, wishes = self._words, self._session.wishes
        with ui.element("div").classes("compose-line"):
            with ui.element("div").classes("compose-frame"):
                self._input = ui.textarea(
                    value=wishes.draft,
                    placeholder=words("placeholder"),
                    on_change=lambda e: setattr(wishes, "draft", e.value or ""),
                )
                self._input.props(f'autogrow borderless dense rows=1 aria-label="{words("message")}"')
                self._input.classes("message")
                self._input.on("keydown", self._on_enter, js_handler=SEND_ON_ENTER)
                self._stop = text_button(words("stop"), self._session.stop, look="quiet-button stop")
                self._send = text_button(words("send"), lambda: self.send(self._input.value), look="ink-button send")
            with ui.element("div").classes("compose-foot"):
                ui.label(words("key_hint")).classes("key-hint")
                self._clear = text_button(words("clear"), self._new_sheet, look="text-button")

    def _on_enter(self, event: GenericEventArguments) -> None:
        self.send(event.args)

    def _new_sheet(self) -> None:
        self._session.stop()
        self._session.turns.clear()
        self._draw()

    def _draw(self) -> None:
        self._log.clear()
        self._views = {}
        if not self._session.turns:
            self._draw_empty()
        for turn in self._session.turns:
            self._add(turn)
        self._show_state()

    def _draw_empty(self) -> None:
        with self._log, ui.element("div").classes("empty"):
            ui.label(self._words("empty_title")).classes("empty-title")
            ui.label(self._words("empty_text")).classes("empty-text")
            with ui.element("div").classes("examples"):
                for request in EXAMPLES:
                    text = request.compose()
                    text_button(text, functools.partial(self.send, text), look="example")

    def _add(self, turn: Turn) -> None:
        with self._log:
            self._views[id(turn)] = TurnView(turn, self._words, again=lambda: self.send(turn.question))

    def _changed(self, turn: Turn) -> None:
        if (view := self._views.get(id(turn))) is not None:
            view.update()
        self._show_state()

    def _show_state(self) -> None:
        writing = bool(self._session.turns) and self._session.turns[-1].state == "writing"
        self._stop.set_visibility(writing)
        self._send.set_visibility(not writing)
        self._clear.set_visibility(bool(self._session.turns))


class TurnView:
    """One question and its reply. Everything said is set as text, never as HTML."""

    def __init__(self, turn: Turn, words: Words, *, again: Callable[[], None]) -> None:
        self._turn = turn
        self._words = words
        self._again = again
        with ui.element("article").classes("turn"):
            ui.label(turn.question).classes("question").props(f'aria-label="{words("you")}"')
            self._body = ui.element("div").classes("answer")
        with self._body:
            self._live = ui.label("").classes("writing").props(f'aria-label="{words("writing")}"')
        self.update()

    def update(self) -> None:
        """Follow the turn: plain text while it is written, the finished sheet after."""
        if self._turn.state == "writing":
            self._live.text = self._turn.answer
            return
        self._body.clear()
        with self._body:
            self._answer()
            self._foot()

    def _answer(self) -> None:
        turn, words = self._turn, self._words
        sheet = read_sheet(turn.question, turn.answer) if turn.state == "done" else None
        if sheet is not None:
            ui.html(sheet_html(sheet, words)).classes("sheet")
        elif turn.answer:
            ui.label(turn.answer).classes("prose")
        if turn.error:
            with ui.element("div").classes("failure").props('role="alert"'):
                ui.label(words("error")).classes("failure-title")
                ui.label(turn.error)

    def _foot(self) -> None:
        turn, words = self._turn, self._words
        with ui.element("div").classes("turn-foot"):
            if turn.tokens and turn.seconds > 0:
                ui.label(words("speed", tokens=turn.tokens, speed=turn.tokens / turn.seconds))
            if turn.state == "stopped":
                ui.label(words("stopped"))
            if turn.cut_off:
                ui.label(words("cut_off"))
            text_button(words("again"), self._again, look="text-button")
