"""cli: the command `wenfang` — its words, its help, and how failures are told.

Every stage of the table becomes a verb with the stage's own config as its options. Commands are imported when
they are called, so `wenfang --help` loads no torch, no server and no data library. No work is done here.
"""

from wenfang.cli.app import main

__all__ = ["main"]
