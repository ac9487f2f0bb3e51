"""A chat template: conversations to text, and which of that text the assistant says.

The environment is the one `transformers` renders templates in, so that both give the same text.
"""

import ctypes
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from wenfang.core.errors import InputError
from wenfang.core.language import say

ROLES = ("system", "user", "assistant", "tool")
LONGEST_S = 5.0
"""Time that rendering a conversation may take; thousands of turns take a fraction of it."""
TICK_S, PATIENCE = 0.1, 100
"""How often the clock looks, and how many times in vain before it goes."""
LARGEST = 1 << 25
"""Characters of a rendered conversation, and items that a product may have."""
Span = tuple[int, int]
"""Characters from the first number up to the second."""


class ChatTemplate:
    """A tokenizer's Jinja template.

    Args:
        source: the template.
        variables: what it may refer to besides the conversation, such as `bos_token`.
    """

    def __init__(self, source: str, variables: Mapping[str, object]) -> None:
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _refuse, "strftime_now": datetime.now().strftime}
        self._template = environment.from_string(source)
        self._variables = variables

    def render(
        self, messages: Sequence[Any], *, tools: Sequence[Any] | None = None, add_generation_prompt: bool = False
    ) -> str:
        """The text of a conversation.

        Raises:
            InputError: the template refuses it, takes too long, grows too large, or would leave out a tool call or a
                tool.
        """
        variables = {**self._variables, "messages": messages, "tools": tools}
        try:
            with _clock.at_most(LONGEST_S):
                text = _joined(self._template.generate(**variables, add_generation_prompt=add_generation_prompt))
        except (TemplateError, TypeError, _TooLong) as error:
            raise InputError(
                say(zh=f"聊天範本無法套用：{error}", en=f"The chat template cannot be applied: {error}")
            ) from None
        for name in _function_names(messages, tools):
            if name not in text:
                raise InputError(
                    say(
                        zh=f"這個模型的聊天範本不支援工具：{name!r} 不會出現。請移除工具，或換模型。",
                        en=f"This model's chat template knows no tools: {name!r} would be left out. Remove the tools "
                        "or choose another model.",
                    )
                )
        return text

    def said(self, text: str, messages: Sequence[Any], *, tools: Sequence[Any] | None, ends: str) -> list[Span]:
        """The parts of `text`, the rendered conversation, that the assistant says, each up to its `ends` token.

        They lie between what the template writes up to the assistant's turn and what it writes with it.

        Raises:
            InputError: the template writes earlier turns differently once later ones follow.
        """
        spans: list[Span] = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.render(messages[:number], tools=tools, add_generation_prompt=True)
            after = self.render(messages[: number + 1], tools=tools)
            if not after.startswith(before) or not text.startswith(after):
                raise InputError(
                    say(
                        zh=f"聊天範本會改寫先前的回合，無法學 `messages[{number}]`。請把對話拆成到該回合為止的數段。",
                        en=f"The chat template rewrites earlier turns, so `messages[{number}]` cannot be learned in "
                        "place. Split the conversation so that each part ends with the turn to learn.",
                    )
                )
            last = after.rfind(ends, len(before))
            spans.append((len(before), len(after) if last < 0 else last + len(ends)))
        return spans


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which products of texts and lists are bounded as its ranges are."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(side) if isinstance(side, str | list | tuple) else side for side in (left, right)]
        if operator == "**" or (sizes != [left, right] and sizes[0] * sizes[1] > LARGEST):
            raise SecurityError(f"{operator} of {sizes[0]} and {sizes[1]}")
        return super().call_binop(context, operator, left, right)


class _TooLong(Exception):
    """Raised where a template is rendered, by the clock."""

    def __str__(self) -> str:
        return say(zh=f"超過 {LONGEST_S:g} 秒", en=f"it takes more than {LONGEST_S:g} seconds")


class _Clock:
    """One thread that watches all others which render, and goes when none has for a while."""

    def __init__(self) -> None:
        self._lock, self._ends = threading.Lock(), dict[int, float]()
        self._watch: threading.Thread | None = None

    @contextmanager
    def at_most(self, seconds: float) -> Iterator[None]:
        """End the block with `_TooLong` when it runs longer: Python code in it, not a single call into C."""
        me = threading.get_ident()
        with self._lock:
            self._ends[me] = time.monotonic() + seconds
            if self._watch is None or not self._watch.is_alive():  # A forked process has no threads.
                self._watch = threading.Thread(target=self._run, name="template clock", daemon=True)
                self._watch.start()
        try:
            yield
        finally:
            with self._lock:  # From here on nothing strikes, and what has struck unheard is taken back.
                self._ends.pop(me, None)
                _raise_in(me, None)

    def _run(self) -> None:
        idle = 0
        while True:
            time.sleep(TICK_S)
            with self._lock:
                idle = 0 if self._ends else idle + 1
                if idle > PATIENCE:
                    self._watch = None
                    return
                now = time.monotonic()
                for thread in [thread for thread, end in self._ends.items() if now > end]:
                    del self._ends[thread]
                    _raise_in(thread, _TooLong)


def _raise_in(thread: int, exception: type[Exception] | None) -> None:
    """Have a thread raise an exception at its next step; None takes back one that it has not raised yet."""
    raised = None if exception is None else ctypes.py_object(exception)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), raised)


_clock = _Clock()


def _joined(pieces: Iterator[str]) -> str:
    """A template's output, as long as it is not too large."""
    kept, size = list[str](), 0
    for piece in pieces:
        kept.append(piece)
        size += len(piece)
        if size > LARGEST:
            raise SecurityError(say(zh=f"超過 {LARGEST} 個字元", en=f"it writes more than {LARGEST} characters"))
    return "".join(kept)


def check_messages(messages: Sequence[Any]) -> None:
    """Refuse what no chat template could render.

    Raises:
        InputError: no messages, an unknown role, or content that is not text.
    """
    if not messages:
        raise InputError(say(zh="`messages` 是空的，至少要有一則。", en="`messages` is empty; give at least one."))
    for i, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise InputError(
                say(
                    zh=f"`messages[{i}].role` 是 {role!r}，只能是 {'、'.join(ROLES)}。",
                    en=f"`messages[{i}].role` is {role!r}; it must be one of {', '.join(ROLES)}.",
                )
            )
        if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
            raise InputError(
                say(
                    zh=f"`messages[{i}].content` 必須是文字，不是 {type(content).__name__}。",
                    en=f"`messages[{i}].content` must be text, not {type(content).__name__}.",
                )
            )


def check_unicode(text: str) -> None:
    """Refuse text that no UTF-8 file or tokenizer can hold.

    Raises:
        InputError: half of a surrogate pair, as JSON's `"\\ud800"` makes one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"U+{ord(text[error.start]):04X}"
        raise InputError(
            say(
                zh=f"文字第 {error.start + 1} 個字元是 {found}，只有半個代理對，不是 Unicode 文字。",
                en=f"Character {error.start + 1} of the text is {found}, half of a surrogate pair: not Unicode text.",
            )
        ) from None


def _function_names(messages: Sequence[Any], tools: Sequence[Any] | None) -> list[str]:
    calls = [call for message in messages for call in message.get("tool_calls") or ()]
    return [str((item.get("function") or item).get("name")) for item in (*calls, *(tools or ()))]


def _to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)
