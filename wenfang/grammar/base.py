"""What every kind of grammar is."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wenfang.core.errors import InputError
from wenfang.core.language import say

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MAX_BYTES = 1 << 19
"""Longest grammar."""

JSON_STYLE: "JsonCompileOptions" = {
    # As `json.dumps` writes it, so that nothing but content is left to choose and no model pads without end.
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    # With \u a known key could be written a second time in disguise; other characters stand for themselves.
    "json_allowed_escapes": '"\\bfnrt',
}


@dataclass(frozen=True)
class Grammar:
    """Which texts are allowed. Immutable and hashable.

    Raises:
        InputError: longer than `MAX_BYTES`, or malformed.
    """

    kind: ClassVar[str]

    def source(self) -> str:
        """The grammar in the language of llguidance."""
        raise NotImplementedError

    def examine(self) -> None:
        """Refuse what could not be guaranteed. May take long: call it where that hurts nobody.

        Raises:
            InputError: with the place.
        """

    def require_reader(self) -> None:
        """Refuse what no second program reads, as its texts could not be validated. May take long, too.

        Raises:
            InputError: with what that program does not read.
        """

    def check(self, text: str) -> None:
        """Validate a finished text, independently of what made it.

        Raises:
            BrokenPromise: it does not fulfil the grammar.
        """

    def reread(self, text: str) -> bool:
        """Whether a text fulfils the grammar: the part of `check` that may take for ever or eat memory, which `verify`
        has done in a process of its own."""
        raise NotImplementedError


def quoted(text: str) -> str:
    """A text as Lark writes a literal."""
    return json.dumps(text, ensure_ascii=False)


def check_length(text: str) -> None:
    """Refuse a longer grammar than `MAX_BYTES`.

    Raises:
        InputError: it is.
    """
    size = len(text.encode(errors="surrogatepass"))
    if size > MAX_BYTES:
        raise InputError(
            say(
                zh=f"文法有 {size:,} 個位元組，最多 {MAX_BYTES:,} 個。請縮短。",
                en=f"The grammar has {size:,} bytes; at most {MAX_BYTES:,} are accepted. Shorten it.",
            )
        )
