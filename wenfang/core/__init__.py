"""core: what every room stands on — config base, artifacts, errors, reporting, language, hardware facts.

Imports nothing of ours and nothing heavy (torch is imported inside the one function that measures with it).
The names below are imported when first used, so that the command line can speak and fail without pydantic.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wenfang.core.artifact import Summary, check_artifact
    from wenfang.core.config import Config
    from wenfang.core.errors import InputError, WenfangError
    from wenfang.core.language import say
    from wenfang.core.report import Reporter

__all__ = ["Config", "InputError", "Reporter", "Summary", "WenfangError", "check_artifact", "say"]

_HOMES = {
    "Config": "config",
    "InputError": "errors",
    "Reporter": "report",
    "Summary": "artifact",
    "WenfangError": "errors",
    "check_artifact": "artifact",
    "say": "language",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
