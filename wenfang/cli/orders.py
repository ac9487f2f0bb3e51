"""A conversation in the terminal, and the words beginning with a slash that change it."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from wenfang.core.errors import InputError, nearest
from wenfang.core.keys_once import keys_once
from wenfang.core.language import say
from wenfang.core.openai import MAX_TEMPERATURE


@dataclass
class Conversation:
    """What was said, and how the model shall go on."""

    system: str
    temperature: float
    top_p: float
    max_tokens: int | None
    seed: int | None
    remember: bool
    schema: str | None = None
    """JSON Schema, as text, that every reply must fulfil."""
    turns: list[tuple[str, str]] = field(default_factory=list)

    @property
    def read(self) -> list[tuple[str, str]]:
        """Earlier turns that the model is given."""
        return self.turns if self.remember else []

    @property
    def next_seed(self) -> int | None:
        """The seed of the next reply, different for every turn."""
        return None if self.seed is None else self.seed + len(self.turns)

    def messages(self) -> list[dict[str, str]]:
        """Everything in OpenAI's form."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for question, answer in self.turns:
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return messages


def obey(talk: Conversation, order: str) -> str:
    """Carry out a word such as `/temp 0.5`; returns what to tell the person.

    Raises:
        InputError: there is no such word, or its value cannot be used.
    """
    word, _, value = order.partition(" ")
    value = value.strip()
    orders = {
        "/system": _system,
        "/temp": _temperature,
        "/schema": _schema,
        "/remember": _remember,
        "/history": _history,
        "/clear": _clear,
        "/save": _save,
        "/help": _help,
    }
    if word not in orders:
        hint = nearest(word, orders) or say(zh="可用的見 /help。", en="/help lists them.")
        raise InputError(say(zh=f"沒有 {word!r}。{hint}", en=f"There is no {word!r}. {hint}"))
    return orders[word](talk, value)


def _system(talk: Conversation, value: str) -> str:
    talk.system = value
    return say(zh=f"系統訊息：{value or '無'}", en=f"system message: {value or 'none'}")


def _temperature(talk: Conversation, value: str) -> str:
    try:
        temperature = float(value)
    except ValueError:
        temperature = -1.0
    if not 0 <= temperature <= MAX_TEMPERATURE:
        most = f"{MAX_TEMPERATURE:g}"
        raise InputError(
            say(zh=f"溫度 {value!r} 須在 0 到 {most} 之間。", en=f"`/temp` takes 0 to {most}, not {value!r}.")
        )
    talk.temperature = temperature
    return say(zh=f"溫度：{temperature:g}", en=f"temperature: {temperature:g}")


def read_schema(path: Path) -> str:
    """A JSON Schema from a file, as text.

    Raises:
        InputError: the file cannot be read, or holds no JSON.
    """
    try:
        text = path.expanduser().read_text(encoding="utf-8")
        json.loads(text, object_pairs_hook=keys_once)
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(
            say(
                zh=f"無法從 {str(path)!r} 讀取 JSON Schema：{why}。",
                en=f"Cannot read a JSON Schema from {str(path)!r}: {why}.",
            )
        ) from None
    return text


def _schema(talk: Conversation, value: str) -> str:
    talk.schema = read_schema(Path(value)) if value else None
    return say(zh=f"回覆須符合：{value or '無'}", en=f"replies must fulfil: {value or 'nothing'}")


def _remember(talk: Conversation, value: str) -> str:
    talk.remember = not talk.remember
    return say(zh="讀先前的對話", en="reads earlier turns") if talk.remember else say(zh="不讀", en="reads none")


def _history(talk: Conversation, value: str) -> str:
    shown = [f"{message['role']}: {message['content']}" for message in talk.messages()]
    return "\n".join(shown) or say(zh="（還沒有）", en="(nothing yet)")


def _clear(talk: Conversation, value: str) -> str:
    talk.turns.clear()
    return say(zh="從頭開始", en="starting afresh")


def _save(talk: Conversation, value: str) -> str:
    """Add the conversation to a file in the form that training reads."""
    if not value:
        raise InputError(say(zh="要存到哪裡？例如 `/save talk.jsonl`。", en="Where to? Such as `/save talk.jsonl`."))
    try:
        with Path(value).expanduser().open("a", encoding="utf-8") as out:
            out.write(json.dumps({"messages": talk.messages()}, ensure_ascii=False) + "\n")
    except OSError as error:
        raise InputError(f"{value!r}: {error.strerror}") from None
    return say(zh=f"已存到 {value}", en=f"saved to {value}")


def _help(talk: Conversation, value: str) -> str:
    return say(
        zh="/system 文字、/temp 數字、/schema 檔案（不給則取消）、/remember、/history、/clear、/save 檔案、/quit；\n"
        '行尾的反斜線接下一行，單獨一行 """ 開始和結束一段。',
        en="/system TEXT, /temp NUMBER, /schema FILE (none lifts it), /remember, /history, /clear, "
        "/save FILE, /quit;\n"
        'a backslash at the end of a line goes on in the next, """ alone on a line begins and ends a block.',
    )
