"""Controls that several parts of the page share."""

from collections.abc import Callable
from typing import Any

from nicegui import ui


def text_button(text: str, on_click: Callable[[], Any], *, look: str) -> ui.button:
    """A button that looks as the style sheet's class `look` says, free of Quasar's own colours and capitals."""
    return ui.button(text, on_click=on_click, color=None).props("flat no-caps").classes(look)
