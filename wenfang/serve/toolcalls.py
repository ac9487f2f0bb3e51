"""Tool calls in a model's own words: which marks its chat template puts around them, and reading them from a stream.

The template is shown a conversation in which the assistant calls two functions. What it writes before, between and
after their JSON is what the model was taught to write.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wenfang.core.errors import InputError

if TYPE_CHECKING:
    from wenfang.tokenizer import Message, Tokenizer

NAMES = ("wenfang_probe_a", "wenfang_probe_b")
ARGUMENT_KEYS = ("arguments", "parameters")


@dataclass(frozen=True)
class ToolCall:
    """A function and its arguments as JSON text."""

    name: str
    arguments: str


@dataclass(frozen=True)
class ToolFormat:
    """How a model writes calls: `opening`, a JSON object, then `closing`. Empty marks stand for a reply that is
    nothing but JSON."""

    opening: str
    closing: str
    arguments_key: str = "arguments"


def tool_format(tokenizer: "Tokenizer") -> ToolFormat | None:
    """What the chat template shows; None where it shows no JSON with a name and arguments."""
    functions = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in NAMES]
    calls = [
        {"type": "function", "id": f"call_{i}", "function": {"name": name, "arguments": {"x": i}}}
        for i, name in enumerate(NAMES)
    ]
    question: Message = {"role": "user", "content": "?"}
    for count in (2, 1):  # Some templates know one call a turn.
        answer: Message = {"role": "assistant", "content": "", "tool_calls": calls[:count]}
        try:
            before = tokenizer.decode(tokenizer.chat([question], tools=functions, add_generation_prompt=True))
            whole = tokenizer.decode(tokenizer.chat([question, answer], tools=functions, add_generation_prompt=False))
        except InputError:
            continue
        if (found := _marks(whole[len(before) :])) is not None:
            return found
    return None


def _marks(said: str) -> ToolFormat | None:
    name = said.find(f'"{NAMES[0]}"')
    start = said.rfind("{", 0, name)
    if name < 0 or start < 0:
        return None
    try:
        _, end = json.JSONDecoder().raw_decode(said, start)
    except ValueError:
        return None
    if _call(said[start:end]) is None:
        return None
    opening = said[:start].strip()
    rest = said[end:]
    second = rest.find(opening) if opening else -1
    closing = (rest[:second] if second >= 0 else rest).strip() if opening else ""
    key = next(key for key in ARGUMENT_KEYS if f'"{key}"' in said[start:end])
    return ToolFormat(opening, closing, key)


class ToolReader:
    """Splits a reply, piece by piece, into text and calls. The pieces may be cut anywhere: the parts are the same.

    What turns out to be no call after all stays text.
    """

    def __init__(self, form: ToolFormat) -> None:
        self._form = form
        self._held = ""
        self._gap = ""
        self._inside = False
        self._blank = True
        self._after_call = False
        closing = f"|{re.escape(form.closing)}" if form.closing else ""
        self._scan = re.compile(r'"(?:[^"\\]|\\.)*(?P<ended>"?)|[{}]' + closing, re.DOTALL)

    def push(self, text: str) -> Iterator[str | ToolCall]:
        """Take in text; yields the parts that are now certain."""
        self._held += text
        while True:
            before, inside = self._held, self._inside
            yield from self._read_call() if self._inside else self._read_text()
            if (self._held, self._inside) == (before, inside):
                return

    def finish(self) -> Iterator[str | ToolCall]:
        """The rest, once no text follows."""
        held, self._held = self._held, ""
        if self._inside and (call := _call(held.strip())) is not None:
            yield call  # The end of the text stands for the closing mark.
        else:
            yield from self._say(self._gap + self._form.opening + held if self._inside else held)
        self._inside = False

    def _read_text(self) -> Iterator[str | ToolCall]:
        opening = self._form.opening or "{"
        alone = self._form.opening or (self._blank and not self._held.partition("{")[0].strip())
        at = self._held.find(opening) if alone else -1
        if at >= 0:
            said, self._held = self._held[:at], self._held[at + len(self._form.opening) :]
            self._inside, self._gap = True, said[len(said.rstrip()) :]
            yield from self._say(said.rstrip())  # Space before a call belongs to the call.
            return
        said = self._held[: len(self._held) - _overlap(self._held, opening)].rstrip()
        self._held = self._held[len(said) :]
        yield from self._say(said)

    def _read_call(self) -> Iterator[str | ToolCall]:
        text, closing = self._held.lstrip(), self._form.closing
        if not text:
            return
        if not text.startswith("{"):
            yield from self._back_to_text(0)
            return
        end, closed = self._end()
        if end is None:
            return
        rest = self._held[end:].lstrip()
        if not closed and len(rest) < len(closing) and closing.startswith(rest):
            return
        call = None if closed else _call(self._held[:end].strip())
        if call is None or not rest.startswith(closing):
            yield from self._back_to_text(end)
            return
        self._held, self._inside, self._after_call, self._blank = rest[len(closing) :], False, True, True
        yield call

    def _end(self) -> tuple[int | None, bool]:
        """Where the JSON object that begins here ends, if it does yet; or else its closing mark comes before."""
        depth = 0
        for match in self._scan.finditer(self._held):
            if match[0] == "{":
                depth += 1
            elif match[0] == "}":
                depth -= 1
                if depth == 0:
                    return match.end(), False
            elif not match[0].startswith('"'):
                return match.end(), True
            elif not match["ended"]:
                break
        return None, False

    def _back_to_text(self, end: int) -> Iterator[str]:
        said, self._held, self._inside = self._held[:end], self._held[end:], False
        self._blank = False
        yield from self._say(self._gap + self._form.opening + said)

    def _say(self, said: str) -> Iterator[str]:
        if said and not (self._after_call and not said.strip()):
            self._blank = self._blank and not said.strip()
            self._after_call = False
            yield said


def _call(text: str) -> ToolCall | None:
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    for key in ARGUMENT_KEYS:
        if isinstance(value.get(key), dict):
            return ToolCall(value["name"], json.dumps(value[key], ensure_ascii=False))
    return None


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that begins `mark`."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)
