"""What servers with OpenAI's interface send: events of a stream, and errors; and the key that a user has for them."""

import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

from wenfang.core.errors import WenfangError
from wenfang.core.language import say

KEYS = ("WENFANG_API_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold a server's key; the first one set is used."""

MAX_TEMPERATURE = 2.0
"""The highest that OpenAI's interface takes, and so the highest here, whoever asks."""


def api_key() -> str | None:
    """The user's key, if there is one."""
    return next((os.environ[name] for name in KEYS if os.environ.get(name)), None)


def read_events(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The objects of an event stream.

    Raises:
        WenfangError: one of them is an error, or no JSON.
    """
    for line in lines:
        if not line.startswith(b"data: {"):
            continue
        try:
            event: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
        except ValueError:
            raise WenfangError(
                say(zh=f"伺服器送來的不是 JSON：{line[:80]!r}。", en=f"The server sent what is no JSON: {line[:80]!r}.")
            ) from None
        if "error" in event:
            raise WenfangError(error_message(event) or str(event["error"])[:200])
        yield event


def error_message(body: object) -> str | None:
    """What an error's body says is wrong; None where it is no such body."""
    return _of_error(body, "message")


def error_code(body: object) -> str | None:
    """How an error's body names what is wrong, such as `context_length_exceeded`; None where it does not."""
    return _of_error(body, "code")


def _of_error(body: object, name: str) -> str | None:
    try:
        return str(body["error"][name])  # type: ignore[index]
    except (LookupError, TypeError):
        return None
