"""What a person types into a conversation: lines, lines that go on, blocks, with editing and history."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wenfang.core.errors import InputError
from wenfang.core.language import say

PROMPT, MORE = "› ", "… "
QUIT = ("/quit", "/exit", "/離開")
BLOCK = '"""'
"""Alone on a line, it opens and closes a question of many lines."""
HISTORY = Path("~/.wenfang_history")
HISTORY_LINES = 1000


def questions() -> Iterator[str]:
    """Questions a person types, blank ones left out. Ends with the input, a word such as /quit, or Ctrl-C.

    A line that ends with a backslash goes on in the next one.
    """
    terminal = sys.stdin.isatty()
    if terminal:
        _open_history()
    try:
        while (question := _read_question()) not in QUIT:
            if question:
                yield question
    except (EOFError, KeyboardInterrupt):
        if terminal:
            print()
    finally:
        if terminal:
            _close_history()


def check_text(text: str) -> None:
    """Refuse bytes that the terminal passed on without being text.

    Raises:
        InputError: `text` is not valid Unicode.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _not_utf8() from None


@contextmanager
def unseen_typing() -> Iterator[None]:
    """Within the block, what is typed ahead does not show up in the middle of a reply; the next prompt shows it."""
    if not sys.stdin.isatty():
        yield
        return
    try:
        import termios
    except ImportError:  # Not on Windows.
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    silent = [*before]
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _read_question() -> str:
    line = _read_line(PROMPT).strip()
    if line == BLOCK:
        lines = list[str]()
        with suppress(EOFError):  # The end of the input closes a block, too.
            while (line := _read_line(MORE)).strip() != BLOCK:
                lines.append(line)
        return "\n".join(lines).strip()
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        with suppress(EOFError):
            lines.append(_read_line(MORE))
    return "\n".join(lines).strip()


def _read_line(prompt: str) -> str:
    try:
        line = input(prompt if sys.stdin.isatty() else "")
    except UnicodeDecodeError:
        raise _not_utf8() from None
    check_text(line)
    return line


def _open_history() -> None:
    """Line editing that knows wide characters, with what was typed in earlier sessions; not on every system."""
    with suppress(ImportError, OSError):
        import readline

        readline.read_history_file(HISTORY.expanduser())


def _close_history() -> None:
    with suppress(ImportError, OSError):
        import readline

        readline.set_history_length(HISTORY_LINES)
        readline.write_history_file(HISTORY.expanduser())


def _not_utf8() -> InputError:
    return InputError(
        say(
            zh="輸入的文字不是 UTF-8。請把終端機或檔案改為 UTF-8。",
            en="The text is not UTF-8. Set the terminal, or save the file, to UTF-8.",
        )
    )
