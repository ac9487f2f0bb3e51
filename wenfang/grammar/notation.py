"""Forms in other notations than JSON: regular expressions, Lark grammars, choices."""

import re
from dataclasses import dataclass
from typing import ClassVar

from wenfang.core.errors import InputError
from wenfang.core.language import say
from wenfang.grammar.base import Grammar, check_length, quoted
from wenfang.grammar.judge import verify
from wenfang.grammar.opinion import derives, matches, reader
from wenfang.grammar.validation import BrokenPromise, linear_match

_DISPUTED = re.compile(r"\\[wWdDsSbB]")
"""Classes that hold all scripts in Rust's expressions, ASCII alone in RE2's."""


@dataclass(frozen=True)
class Regex(Grammar):
    """Text that a regular expression matches as a whole. Rust's syntax; neither look-around nor back-references."""

    kind: ClassVar[str] = "regex"
    pattern: str

    def __post_init__(self) -> None:
        check_length(self.pattern)

    def source(self) -> str:
        """The grammar in the language of llguidance."""
        from llguidance import LLMatcher

        return str(LLMatcher.grammar_from_regex(self.pattern))

    def require_reader(self) -> None:
        """Refuse an expression that nobody else reads.

        Raises:
            InputError: neither RE2 nor `regex` does.
        """
        if self._fast("") is None:
            try:
                matches(self.pattern, "")
            except ValueError as error:
                raise InputError(
                    say(
                        zh=f"沒有第二個程式讀得懂這個正規表示式來驗證：{error}。",
                        en=f"No second program reads this expression to validate its texts: {error}.",
                    )
                ) from None

    def check(self, text: str) -> None:
        """Match it with RE2, where RE2 reads the expression and means the same by it, or else with `regex`.

        Raises:
            BrokenPromise: it does not match as a whole.
        """
        found = self._fast(text)
        if not (verify(self, text) if found is None else found):
            raise BrokenPromise(
                say(
                    zh=f"生成的文字不符合正規表示式：{text[:80]!r}。",
                    en=f"The text does not match the expression: {text[:80]!r}.",
                )
            )

    def reread(self, text: str) -> bool:
        """Whether `regex` matches it as a whole."""
        return matches(self.pattern, text)

    def _fast(self, text: str) -> bool | None:
        """RE2's opinion, if it has one."""
        if _DISPUTED.search(self.pattern):
            return None
        try:
            return linear_match(rf"\A(?:{self.pattern})\z", text)
        except ValueError:  # Such as repetitions above 1,000.
            return None


@dataclass(frozen=True)
class Lark(Grammar):
    """Text that a context-free grammar in Lark's notation derives from `start`."""

    kind: ClassVar[str] = "lark"
    grammar: str

    def __post_init__(self) -> None:
        check_length(self.grammar)

    def source(self) -> str:
        """The grammar in the language of llguidance."""
        from llguidance import LLMatcher

        return str(LLMatcher.grammar_from_lark(self.grammar))

    def require_reader(self) -> None:
        """Refuse what llguidance has beyond Lark's notation, such as `%json`, special tokens, `&` and attributes.

        Raises:
            InputError: `lark` does not read it.
        """
        try:
            reader(self.grammar)
        except ValueError as error:
            why = str(error).splitlines()[0].rstrip(".")
            raise InputError(
                say(
                    zh=f"沒有第二個程式讀得懂這份文法來驗證：{why}。請只用 Lark 的寫法；JSON 請用 `json`。",
                    en=f"No second program reads this grammar to validate its texts: {why}. Keep to Lark's own "
                    "notation; for JSON, ask for a schema.",
                )
            ) from None

    def check(self, text: str) -> None:
        """Parse it with `lark`.

        Raises:
            BrokenPromise: the grammar does not derive it.
        """
        if not verify(self, text):
            raise BrokenPromise(
                say(
                    zh=f"文法導不出生成的文字：{text[:80]!r}。",
                    en=f"The grammar does not derive the text: {text[:80]!r}.",
                )
            )

    def reread(self, text: str) -> bool:
        """Whether `lark` derives it."""
        return derives(self.grammar, text)


@dataclass(frozen=True)
class Choice(Grammar):
    """One of several texts."""

    kind: ClassVar[str] = "choice"
    options: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", tuple(self.options))
        if not self.options:
            raise InputError(say(zh="`choice` 是空的，至少要有一個選項。", en="`choice` is empty; give an option."))
        check_length("".join(self.options))

    def source(self) -> str:
        """The grammar in the language of llguidance."""
        from llguidance import LLMatcher

        return str(LLMatcher.grammar_from_lark("start: " + " | ".join(quoted(option) for option in self.options)))

    def check(self, text: str) -> None:
        """Look it up.

        Raises:
            BrokenPromise: it is none of the options.
        """
        if text not in self.options:
            raise BrokenPromise(
                say(
                    zh=f"生成的文字不是選項之一：{text[:80]!r}。", en=f"The text is none of the options: {text[:80]!r}."
                )
            )
