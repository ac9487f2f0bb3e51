"""Which bytes each token stands for."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tokenizers

from wenfang.core.errors import TokenizerError
from wenfang.core.language import say

BYTE_NAMES = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}


def token_bytes(rust: tokenizers.Tokenizer) -> list[bytes]:
    """The bytes of every token by id; special and added tokens have those of their names, unused ids none.

    Raises:
        TokenizerError: a kind of tokenizer whose tokens have no bytes of their own, such as WordPiece.
    """
    document = json.loads(rust.to_str())
    steps = {step["type"]: step for step in _steps(document.get("decoder"))}
    added = {token["id"]: token["content"] for token in document.get("added_tokens", ())}
    if "ByteLevel" in steps:
        spell: Callable[[str], bytes] = _ByLetter(_byte_letters())
    elif document["model"].get("byte_fallback") or "Metaspace" in steps:
        spaces = [step["pattern"]["String"] for step in steps.values() if step["type"] == "Replace"]
        spell = _ByText((*spaces, *(["▁"] if "Metaspace" in steps else [])))
    else:
        kind = document["model"].get("type")
        raise TokenizerError(
            say(
                zh=f"這種分詞器（{kind!r}）的詞元沒有各自的位元組，無法約束格式。請換模型。",
                en=f"The tokens of this kind of tokenizer ({kind!r}) have no bytes of their own, so their text "
                "cannot be constrained. Choose another model.",
            )
        )
    names = [rust.id_to_token(id_) for id_ in range(rust.get_vocab_size(with_added_tokens=True))]
    return [
        added[id_].encode() if id_ in added else b"" if name is None else spell(name) for id_, name in enumerate(names)
    ]


class _ByLetter:
    """Byte-level BPE: each byte is written as one letter."""

    def __init__(self, letters: Mapping[str, int]) -> None:
        self._letters = letters

    def __call__(self, name: str) -> bytes:
        return bytes(self._letters[letter] for letter in name)


class _ByText:
    """Text as it stands, with marks for spaces and names for single bytes."""

    def __init__(self, spaces: Sequence[str]) -> None:
        self._spaces = spaces

    def __call__(self, name: str) -> bytes:
        if name in BYTE_NAMES:
            return BYTE_NAMES[name]
        for mark in self._spaces:
            name = name.replace(mark, " ")
        return name.encode()


def _byte_letters() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes for the letters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


def _steps(decoder: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    if decoder is not None and decoder["type"] == "Sequence":
        for step in decoder["decoders"]:
            yield from _steps(step)
    elif decoder is not None:
        yield decoder
