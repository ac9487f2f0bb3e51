"""Opening a tokenizer folder, and rendering conversations without letting text forge a turn."""

import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import tokenizers
from jinja2 import TemplateError

from wenfang.core.chat_template import read_chat_template
from wenfang.core.errors import TokenizerError
from wenfang.core.language import say
from wenfang.tokenizer.chat import ChatTemplate, check_messages, check_unicode
from wenfang.tokenizer.plain import PlainText
from wenfang.tokenizer.spelling import token_bytes

NO_TEMPLATE = "{{ raise_exception('this model has none, it only continues text') }}"
MARK = re.compile("\ue000(\\d+)\ue001")


class Message(TypedDict):
    """One turn of a conversation in OpenAI's form."""

    role: str
    content: str | None
    """None beside tool calls alone."""
    tool_calls: NotRequired[list[dict[str, Any]]]
    """An assistant's calls: `{"type": "function", "function": {"name": …, "arguments": …}}`."""
    tool_call_id: NotRequired[str]
    name: NotRequired[str]


class Tokenizer:
    """A trained tokenizer with its chat template.

    Args:
        rust: the `tokenizers` object; special tokens inside text are always encoded as plain text.
        config: the content of `tokenizer_config.json`. A model without a chat template continues text but cannot
            chat; one without a token for the beginning has that for the end in its place.

    Raises:
        TokenizerError: the chat template is not one.
    """

    def __init__(self, rust: tokenizers.Tokenizer, config: Mapping[str, object]) -> None:
        self._rust = rust
        self._framing = _sharing(rust)  # Here a special token in the text is one.
        named = {name: _content(config.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
        try:
            self._template = ChatTemplate(str(config.get("chat_template") or NO_TEMPLATE), named)
        except TemplateError as error:
            raise TokenizerError(
                say(zh=f"聊天範本有誤：{error}", en=f"The chat template is not valid: {error}")
            ) from None
        self._end = str(named["eos_token"])
        self._special = {t.content: id_ for id_, t in rust.get_added_tokens_decoder().items() if t.special}
        self._special_pattern = re.compile(f"({'|'.join(map(re.escape, self._special))})")
        self._plain = PlainText(rust, self._special.values())
        self.end_id = self._special[self._end]
        self.bos_id = self._special.get(str(named["bos_token"]), self.end_id)

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
            config["chat_template"] = read_chat_template(folder, config)
            rust = tokenizers.Tokenizer.from_buffer((folder / "tokenizer.json").read_bytes())
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

    @property
    def token_bytes(self) -> list[bytes]:
        """The bytes every token stands for, by id; a special token's are its name.

        Raises:
            TokenizerError: the tokens of this kind of tokenizer have none of their own.
        """
        return token_bytes(self._rust)

    @property
    def special_ids(self) -> list[int]:
        """Tokens that no text contains."""
        return sorted(self._special.values())

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text. Never yields a special token, whatever the text says.

        Raises:
            InputError: the vocabulary has a character of it as a special token alone.
        """
        return self._plain.encode(text)

    def begin(self, text: str) -> list[int]:
        """Token ids of a text to continue, with whatever the tokenizer's own post-processor puts before it, such as a
        token for the beginning. Raises what `encode` does."""
        ids = self._plain.begin(text)
        return ids[:-1] if len(ids) > 1 and ids[-1] == self.end_id else ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts, on all cores."""
        return self._plain.encode_batch(texts)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; special tokens are left out, broken byte sequences become U+FFFD."""
        return str(self._rust.decode(list(ids), skip_special_tokens=True))

    def chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Token ids of a conversation, ready for the model to answer.

        Equal to `apply_chat_template` of the saved folder for text that holds no special token; where a
        message does hold one, it stays plain text here.

        Raises:
            InputError: no messages, an unknown role, content that is not Unicode text, or tools that the template
                does not know.
        """
        check_messages(messages)
        guarded, guarded_tools = self._guard(messages), self._guard(tools)
        text = self._template.render(guarded, tools=guarded_tools, add_generation_prompt=add_generation_prompt)
        return [id_ for id_, _ in self._encode_template(text)]

    def chat_with_mask(
        self, messages: Sequence[Message], *, tools: Sequence[dict[str, Any]] | None = None
    ) -> list[tuple[int, bool]]:
        """Token ids of a conversation, each with whether the assistant says it (its end token included).

        Raises:
            InputError: as `chat`, or the template rewrites earlier turns.
        """
        check_messages(messages)
        guarded, guarded_tools = self._guard(messages), self._guard(tools)
        text = self._template.render(guarded, tools=guarded_tools)
        spans = self._template.said(text, guarded, tools=guarded_tools, ends=self._end)
        starts, stops = [start for start, _ in spans], [stop for _, stop in spans]
        result = []
        for id_, at in self._encode_template(text):
            turn = bisect_right(starts, at) - 1
            result.append((id_, turn >= 0 and at < stops[turn]))
        return result

    def _guard(self, value: Any) -> Any:
        """The same with every special token in its text replaced by a mark that no tokenizer takes for one.

        Raises:
            InputError: text that is not Unicode: half of a surrogate pair.
        """
        if isinstance(value, str):
            check_unicode(value)
            return self._special_pattern.sub(lambda match: f"\ue000{self._special[match[0]]}\ue001", value)
        if isinstance(value, Mapping):
            return {key: self._guard(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._guard(item) for item in value]
        return value

    def _encode_template(self, text: str) -> Iterator[tuple[int, int]]:
        """Ids of rendered text, each with the character at which it begins."""
        if MARK.search(text) is None:
            encoding = self._framing.encode(text, add_special_tokens=False)
            ids, offsets = encoding.ids, encoding.offsets
            special = ((id_, text[slice(*offsets[i])]) for i, id_ in enumerate(ids) if id_ in self._plain.forbidden)
            # By its name: a normalizer may make one of other text.
            if all(self._special.get(name.strip()) == id_ for id_, name in special):
                yield from zip(ids, (start for start, _ in offsets), strict=True)
                return
        at = 0
        for piece in self._special_pattern.split(text):
            if piece in self._special:
                yield self._special[piece], at
            else:
                plain, shift = self._unguard(piece)
                yield from ((id_, at + shift[start]) for id_, start in self._plain.encode_with_starts(plain))
            at += len(piece)

    def _unguard(self, piece: str) -> tuple[str, list[int]]:
        """Text with its special tokens back as plain text, and where each of its characters was in `piece`."""
        names = {id_: name for name, id_ in self._special.items()}
        plain, shift, done = "", list[int](), 0
        for match in MARK.finditer(piece):
            name = names.get(int(match[1]), match[0])
            plain += piece[done : match.start()] + name
            shift += [*range(done, match.start()), *([match.start()] * len(name))]
            done = match.end()
        return plain + piece[done:], [*shift, *range(done, len(piece) + 1)]


def _sharing(rust: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Another tokenizer over the same vocabulary and merges, of which a large model has 100 MB in memory."""
    other = tokenizers.Tokenizer(rust.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        setattr(other, part, getattr(rust, part))
    other.add_tokens([token for _, token in sorted(rust.get_added_tokens_decoder().items())])
    return other


def _content(token: object) -> object:
    """A special token's text; some files describe it with how it is matched."""
    return token.get("content") if isinstance(token, Mapping) else token
