"""A chat template: conversations to text, and which of that text the assistant says.

The environment is the one `transformers` renders templates in, so that both give the same text.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from wenfang.core.errors import InputError
from wenfang.core.language import say

ROLES = ("system", "user", "assistant", "tool")
Span = tuple[int, int]
"""Characters from the first number up to the second."""


class ChatTemplate:
    """A tokenizer's Jinja template.

    Args:
        source: the template.
        variables: what it may refer to besides the conversation, such as `bos_token`.
    """

    def __init__(self, source: str, variables: Mapping[str, object]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _refuse, "strftime_now": datetime.now().strftime}
        self._template = environment.from_string(source)
        self._variables = variables

    def render(
        self, messages: Sequence[Any], *, tools: Sequence[Any] | None = None, add_generation_prompt: bool = False
    ) -> str:
        """The text of a conversation.

        Raises:
            InputError: the template refuses it, or would leave out a tool call or a tool.
        """
        try:
            text = self._template.render(
                **self._variables, messages=messages, tools=tools, add_generation_prompt=add_generation_prompt
            )
        except (TemplateError, TypeError) as error:
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
