"""The page as a whole: header, the two views, and the language they speak."""

import functools

from fastapi import Request as HttpRequest
from nicegui import ui

from wenfang.serve import Dispatcher
from wenfang.studio.chart import INK
from wenfang.studio.chat import ChatView
from wenfang.studio.controls import text_button
from wenfang.studio.desk import Desk
from wenfang.studio.run import Found
from wenfang.studio.session import Session
from wenfang.studio.training import REFRESH_S, TrainingView
from wenfang.studio.words import Words, preferred_language


class StudioPage:
    """One visitor's page. Changing the language draws it anew around the same session."""

    def __init__(self, dispatcher: Dispatcher, found: Found, request: HttpRequest) -> None:
        asked = request.query_params.get("lang")
        language = asked if asked in ("zh", "en") else preferred_language(request.headers.get("accept-language"))
        self._found = found
        self._model = dispatcher.engine.name
        self._session = Session(dispatcher)
        self._words = Words(language)
        self._view = "training" if request.query_params.get("view") == "training" else "chat"
        self._client = ui.context.client
        ui.colors(primary=INK)
        self._root = ui.element("div").classes("studio")
        self._draw()
        ui.timer(REFRESH_S, lambda: self._training.refresh())
        self._client.on_disconnect(self._session.stop)  # Nobody reads on.

    def _draw(self) -> None:
        words = self._words
        self._root.clear()
        with self._root:
            self._header()
            with ui.element("div").classes("chat-view") as self._chat:
                chat = ChatView(self._session, words)
                Desk(self._session.wishes, words, fill=chat.fill, compose=chat.send)
            self._training = TrainingView(self._found, words)
        self._show(self._view)
        self._client.run_javascript(f"document.documentElement.lang = {words.tag!r}")

    def _header(self) -> None:
        words = self._words
        with ui.element("header").classes("masthead"):
            with ui.element("div").classes("brand"):
                ui.label("文房").classes("seal").props('aria-hidden="true"')
                with ui.element("div"):
                    with ui.element("h1"):
                        ui.label(words("studio"))
                    ui.label(self._model).classes("model-name")
            with ui.element("nav").props(f'aria-label="{words("views")}"'):
                self._tabs = {
                    view: text_button(words(view), functools.partial(self._show, view), look="tab")
                    for view in ("chat", "training")
                }
            toggle = text_button(words("other_language"), self._switch_language, look="text-button language")
            toggle.props(f'aria-label="{words("switch_language")}"')

    def _show(self, view: str) -> None:
        self._view = view
        for name, tab in self._tabs.items():
            tab.classes(add="chosen" if name == view else "", remove="" if name == view else "chosen")
            tab.props(f"aria-current={'page' if name == view else 'false'}")
        self._chat.set_visibility(view == "chat")
        self._training.set_shown(view == "training")
        self._remember_address()

    def _switch_language(self) -> None:
        self._words = Words("zh" if self._words.language == "en" else "en")
        with self._client:  # The button that was pressed, and its place on the page, are about to go.
            self._draw()

    def _remember_address(self) -> None:
        """Keep language and view in the address, so that a reload shows the same."""
        self._client.run_javascript(f"history.replaceState(null, '', '?lang={self._words.language}&view={self._view}')")
