"""The second opinion on texts of regular expressions and context-free grammars: by `regex` and `lark`.

Both may take for ever over a hostile expression, so this runs in the trial process, which is ended then.
"""

import re
from typing import Any

_REPEATED = re.compile(
    r'"(?:\\.|[^"\\\n])*"|/(?!/)(?:\\.|[^/\\\n])+/|//[^\n]*|#[^\n]*|\{(?P<least>\d+)(?:(?P<comma>,)(?P<most>\d+))?\}'
)
"""What holds no repetition although it may look like one; or one with both its ends."""


def matches(pattern: str, text: str) -> bool:
    """Whether an expression matches a text as a whole.

    Raises:
        ValueError: `regex` does not read the expression.
    """
    import regex

    try:
        return regex.fullmatch(pattern, text, flags=regex.VERSION1) is not None  # As in Rust, sets have operators.
    except regex.error as error:
        raise ValueError(str(error)) from None


def derives(grammar: str, text: str) -> bool:
    """Whether a grammar derives a text from `start`, however it is cut into terminals (Earley 1970).

    Raises:
        ValueError: `lark` does not read the grammar.
    """
    from lark.exceptions import UnexpectedInput

    try:
        reader(grammar).parse(text)
    except UnexpectedInput:
        return False
    return True


def reader(grammar: str) -> Any:
    """`lark`'s parser for a grammar.

    Raises:
        ValueError: it does not read the grammar; llguidance's notation has more than its own.
    """
    import regex
    from lark.exceptions import LarkError

    regex.DEFAULT_VERSION = regex.VERSION1
    try:
        return _parser(_REPEATED.sub(_as_lark, grammar))
    except (LarkError, regex.error, ValueError) as error:
        raise ValueError(str(error)) from None


def _as_lark(found: "re.Match[str]") -> str:
    """llguidance's `{2,3}` as Lark's `~2..3`; a string, an expression or a comment as it is."""
    least, comma, most = found["least"], found["comma"], found["most"]
    if least is None:
        return found[0]
    return f"~{least}..{most}" if comma else f"~{least}"


def _parser(grammar: str) -> Any:
    """A parser. Terminals that match nothing, which `lark` forbids, become their longer matches, or are left out."""
    from lark import Lark
    from lark.grammar import NonTerminal, Rule, Terminal
    from lark.lexer import PatternRE

    class Parser(Lark):
        def _build_parser(self) -> Any:
            for terminal in [one for one in self.terminals if one.pattern.min_width == 0]:
                here, maybe = Terminal(terminal.name), NonTerminal(f"__maybe_{terminal.name}")
                # Not where the match began.
                terminal.pattern = PatternRE(rf"(?:{terminal.pattern.value})(?!\G)", terminal.pattern.flags)
                for rule in self.rules:
                    rule.expansion = [maybe if symbol == here else symbol for symbol in rule.expansion]
                self.rules += [Rule(maybe, [here]), Rule(maybe, [])]
            return super()._build_parser()

    # The dynamic lexer tries every length of every terminal, as llguidance allows every one.
    return Parser(grammar, parser="earley", lexer="dynamic_complete", ambiguity="forest", regex=True)
