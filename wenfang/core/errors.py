"""What can go wrong, named after the user's problem. Each message says what, where, and what to do next."""

import difflib
from collections.abc import Iterable


class WenfangError(Exception):
    """A failure the user can read: one or two lines, no traceback. The command exits with `exit_code`."""

    exit_code = 1


class InputError(WenfangError):
    """What the user gave (a file, a value, a folder) cannot be used."""

    exit_code = 2


class RecipeError(InputError):
    """A recipe that cannot be run as written: unknown key, wrong type, missing input, cycle."""


class DataError(InputError):
    """Text that cannot be read or holds nothing to learn from."""


class TokenizerError(InputError):
    """A tokenizer that cannot be trained or opened as asked."""


class ModelError(InputError):
    """A model folder that is missing a file, damaged, or of a kind this build does not know."""


class PortError(InputError):
    """An address the server cannot listen on."""


class CapacityError(InputError):
    """Work that this machine has not the memory or the disk for."""


class GrammarError(InputError):
    """A form of text that is malformed, cannot be guaranteed, or takes too much to keep."""


class BusyError(WenfangError):
    """Another process is already doing this work in the same place."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name closest to a mistyped one, as a hint ready to append; empty when none is close."""
    from wenfang.core.language import say

    match = difflib.get_close_matches(name, list(known), n=1)
    return say(zh=f"是否指 {match[0]!r}？", en=f"Did you mean {match[0]!r}?") if match else ""
