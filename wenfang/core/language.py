"""The language people are spoken to in: 正體中文 first, English when their locale asks for it."""

import os


def language() -> str:
    """`zh` or `en`: `WENFANG_LANGUAGE` if set, else English for an English locale, else Chinese."""
    chosen = os.environ.get("WENFANG_LANGUAGE") or os.environ.get("LC_ALL") or os.environ.get("LANG") or ""
    return "en" if chosen.lower().startswith("en") else "zh"


def say(*, zh: str, en: str) -> str:
    """The one of two equal texts that the user reads."""
    return en if language() == "en" else zh
