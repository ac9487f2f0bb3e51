"""The second opinion on texts of regular expressions and context-free grammars: by `regex` and `lark`.

Both may take for ever over a hostile expression, so this runs in the trial process, which is ended then.
"""

from typing import Any


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
        ValueError: `lark` does not read the grammar; llguidance's notation has more than its own.
    """
    import regex
    from lark.exceptions import LarkError, UnexpectedInput

    regex.DEFAULT_VERSION = regex.VERSION1
    try:
        parser = _parser(grammar)
    except (LarkError, regex.error, ValueError) as error:
        raise ValueError(str(error)) from None
    try:
        parser.parse(text)
    except UnexpectedInput:
        return False
    return True


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
