"""Opening a tokenizer folder, and rendering conversations without letting text forge a turn."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import tokenizers
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from wenfang.core.errors import InputError, TokenizerError
from wenfang.core.language import say

ROLES = ("system", "user", "assistant")


class Message(TypedDict):
    """One turn of a conversation in OpenAI's form."""

    role: str
    content: str


class Tokenizer:
    """A trained tokenizer with its chat template.

    Args:
        rust: the `tokenizers` object; special tokens inside text are always encoded as plain text.
        config: the content of `tokenizer_config.json`.
    """

    def __init__(self, rust: tokenizers.Tokenizer, config: Mapping[str, object]) -> None:
        self._rust = rust
        self._rust.encode_special_tokens = True
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        self._template = environment.from_string(str(config["chat_template"]))
        self._special = {token.content: id_ for id_, token in rust.get_added_tokens_decoder().items()}
        self._special_pattern = re.compile(f"({'|'.join(map(re.escape, self._special))})")
        self.bos_id = self._special[str(config["bos_token"])]
        self.end_id = self._special[str(config["eos_token"])]

    @classmethod
    def load(cls, folder: Path, *, model_vocab_size: int | None = None) -> "Tokenizer":
        """Open a tokenizer or model folder.

        Args:
            model_vocab_size: how many token ids the model that is to read its output knows.

        Raises:
            TokenizerError: a file is missing or cannot be read, or the model knows fewer ids than the tokenizer has.
        """
        tokenizer = cls._read(folder)
        if model_vocab_size is not None and tokenizer.vocab_size > model_vocab_size:
            raise TokenizerError(
                say(
                    zh=f"{str(folder)!r} 的分詞器有 {tokenizer.vocab_size} 個詞元，模型只認得 {model_vocab_size} 個。"
                    "請換上模型自己的分詞器。",
                    en=f"The tokenizer in {str(folder)!r} has {tokenizer.vocab_size} ids, the model knows "
                    f"{model_vocab_size}. Put the model's own tokenizer there.",
                )
            )
        return tokenizer

    @classmethod
    def _read(cls, folder: Path) -> "Tokenizer":
        try:
            config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
            rust = tokenizers.Tokenizer.from_str((folder / "tokenizer.json").read_text(encoding="utf-8"))
            return cls(rust, config)
        except FileNotFoundError as error:
            raise TokenizerError(
                say(
                    zh=f"{str(folder)!r} 缺少 {Path(error.filename).name!r}，無法開啟分詞器。",
                    en=f"{str(folder)!r} lacks {Path(error.filename).name!r}, so its tokenizer cannot be opened.",
                )
            ) from None
        except Exception as error:  # noqa: BLE001 - the Rust reader raises plain Exception for a bad file
            raise TokenizerError(
                say(
                    zh=f"{str(folder)!r} 的分詞器無法讀取：{error}。請重新產生該資料夾。",
                    en=f"The tokenizer in {str(folder)!r} cannot be read: {error}. Make the folder again.",
                )
            ) from None

    @property
    def vocab_size(self) -> int:
        """Number of token ids, special tokens included."""
        return int(self._rust.get_vocab_size(with_added_tokens=True))

    @property
    def tokens(self) -> list[str]:
        """Every token as the vocabulary spells it, by id."""
        return [str(self._rust.id_to_token(id_)) for id_ in range(self.vocab_size)]

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text. Never yields a special token, whatever the text says."""
        return list(self._rust.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts, on all cores."""
        return [encoding.ids for encoding in self._rust.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; special tokens are left out, broken byte sequences become U+FFFD."""
        return str(self._rust.decode(list(ids), skip_special_tokens=True))

    def chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        """Token ids of a conversation, ready for the model to answer.

        Equal to `apply_chat_template` of the saved folder for text that holds no special token; where a
        message does hold one, it stays plain text here.

        Raises:
            InputError: no messages, an unknown role, or content that is not text.
        """
        return [id_ for id_, _ in self.chat_with_mask(messages, add_generation_prompt=add_generation_prompt)]

    def chat_with_mask(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False
    ) -> list[tuple[int, bool]]:
        """Token ids of a conversation, each with whether the assistant says it (its end token included)."""
        check_messages(messages)
        # The template sees a placeholder for each content, so that text cannot be read as a special token.
        marks = [f"\ue000{i}\ue001" for i in range(len(messages))]
        rest = self._render(
            [{"role": m["role"], "content": mark} for m, mark in zip(messages, marks, strict=True)],
            add_generation_prompt,
        )
        result: list[tuple[int, bool]] = []
        assistant = False
        for message, mark in zip(messages, marks, strict=True):
            before, rest = rest.split(mark, 1)
            result += self._frame(before, ends_assistant=assistant)
            assistant = message["role"] == "assistant"
            result += [(id_, assistant) for id_ in self.encode(message["content"])]
        return result + self._frame(rest, ends_assistant=assistant)

    def _frame(self, template: str, *, ends_assistant: bool) -> list[tuple[int, bool]]:
        """Ids of the template's text between two contents; only its first token can be the assistant's."""
        ids: list[int] = []
        for piece in self._special_pattern.split(template):
            ids += [self._special[piece]] if piece in self._special else self.encode(piece)
        return [(id_, ends_assistant and i == 0) for i, id_ in enumerate(ids)]

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        try:
            return self._template.render(messages=messages, add_generation_prompt=add_generation_prompt)
        except TemplateError as error:
            raise InputError(
                say(zh=f"聊天範本無法套用：{error}", en=f"The chat template cannot be applied: {error}")
            ) from None


def check_messages(messages: Sequence[Message]) -> None:
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
        if not isinstance(content, str) or not _is_unicode(content):
            raise InputError(
                say(
                    zh=f"`messages[{i}].content` 必須是文字，不是 {content!r:.60}。",
                    en=f"`messages[{i}].content` must be text, not {content!r:.60}.",
                )
            )


def _is_unicode(text: str) -> bool:
    """Whether no surrogate stands alone: JSON can spell one, UTF-8 cannot."""
    return not re.search("[\ud800-\udfff]", text)
