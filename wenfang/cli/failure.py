"""How a failed command ends: one or two lines that a person can act on, and an exit code."""

import errno
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Literal, get_args, get_origin

from cyclopts import (
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    ValidationError,
)

import wenfang
from wenfang.cli.interrupt import Terminated
from wenfang.core.errors import WenfangError, nearest
from wenfang.core.language import say

USAGE_CODE = 2
UNFIT_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
"""What the operating system says of a place that was given and cannot be used, as an input that cannot."""
PACKAGE = Path(wenfang.__file__).parent


def fail(error: BaseException) -> int:
    """Tell the user what went wrong, on standard error, and return the exit code."""
    message, code = explain(error)
    if isinstance(error, BrokenPipeError):
        # Whoever read our output has left: nothing more can be said there, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if message:
        print(message, file=sys.stderr)
    return code


def explain(error: BaseException) -> tuple[str, int]:
    """The lines to show for an error that commands are expected to end with, and its exit code."""
    if isinstance(error, WenfangError):
        return str(error), error.exit_code
    if isinstance(error, CycloptsError):
        return _usage(error), USAGE_CODE
    if isinstance(error, KeyboardInterrupt):
        return "", 143 if isinstance(error, Terminated) else 130
    if isinstance(error, BrokenPipeError):
        return "", 141
    if isinstance(error, OSError):
        return _system(error), USAGE_CODE if error.errno in UNFIT_PLACE else 1
    if isinstance(error, MemoryError):
        return say(zh="記憶體不足。請縮小模型或批次。", en="Out of memory. Make the model or the batch smaller."), 1
    return _unexpected(error, error.__traceback__), 1


def unexpected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """An exception hook that shows a mistake of ours in one line instead of a traceback."""
    print(_unexpected(error, trace), file=sys.stderr)


def _unexpected(error: BaseException, trace: TracebackType | None) -> str:
    where = "?"
    while trace is not None:
        path = Path(trace.tb_frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):  # The last line of ours says more than a library's own.
            where = f"{path.relative_to(PACKAGE.parent)}:{trace.tb_lineno}"
        trace = trace.tb_next
    what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return say(
        zh=f"未預期的 {what}（{where}）。請加 --debug 再執行一次，並回報結果。",
        en=f"unexpected {what} ({where}). Run again with --debug and report what it shows.",
    )


def _usage(error: CycloptsError) -> str:
    words = " ".join(("wenfang", *(error.command_chain or ())))
    more = say(zh=f"用法見 `{words} --help`。", en=f"See `{words} --help`.")
    return f"{_mistake(error)} {more}"


def _mistake(error: CycloptsError) -> str:
    """What is wrong with the words of a command."""
    if isinstance(error, UnknownCommandError) and error.unused_tokens:
        word = error.unused_tokens[0]
        known = [name for name in error.app or () if not name.startswith("-")]
        hint = nearest(word, known) or say(zh=f"可用的有 {'、'.join(known)}。", en=f"Known are {', '.join(known)}.")
        return say(zh=f"沒有指令 {word!r}。{hint}", en=f"There is no command {word!r}. {hint}")
    if isinstance(error, UnknownOptionError):
        word = error.token.keyword or error.token.value
        known = [name for argument in error.argument_collection for name in argument.names]
        return say(
            zh=f"沒有選項 {word!r}。{nearest(word, known)}",
            en=f"There is no option {word!r}. {nearest(word, known)}".rstrip(),
        )
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        name = error.argument.name
        return say(zh=f"缺少 {name} 的值。", en=f"{name} needs a value.")
    if error.__cause__ is not None and (refused := _refused(error.__cause__)):
        return refused
    if isinstance(error, CoercionError) and error.token is not None and error.argument is not None:
        name, value = error.argument.name, error.token.value
        if get_origin(error.target_type) is Literal:
            listed = ", ".join(map(str, get_args(error.target_type)))
            return say(zh=f"{name} 的值 {value!r} 不是 {listed} 之一。", en=f"{name} is {value!r}; known are {listed}.")
        kind = getattr(error.target_type, "__name__", str(error.target_type))
        return say(zh=f"{name} 的值 {value!r} 不是 {kind}。", en=f"{name} is {value!r}, which is not a valid {kind}.")
    if isinstance(error, ValidationError) and error.argument is not None:
        name, value, bound = error.argument.name, error.argument.value, error.exception_message
        bound = say(zh=bound.replace("Must be", "必須").rstrip(".") + "。", en=bound)  # As `validators.Number` says it.
        return say(zh=f"{name} 不能是 {value}。{bound}", en=f"{name} cannot be {value}. {bound}")
    return " ".join(str(error).split())


def _refused(cause: BaseException) -> str:
    """Why a config does not accept an option's value; empty when the cause is something else."""
    import pydantic

    from wenfang.core.config import Config
    from wenfang.recipe.reasons import first_error, reason

    return reason(first_error(cause), Config) if isinstance(cause, pydantic.ValidationError) else ""


def _system(error: OSError) -> str:
    """A refusal of the operating system, with what to do about the common ones."""
    advice = {
        errno.ENOSPC: say(
            zh="磁碟已滿。請騰出空間後再執行同一個指令。",
            en="The disk is full. Free some space and run the same command.",
        ),
        errno.EIO: say(
            zh="磁碟回報錯誤。請檢查磁碟後再執行同一個指令。",
            en="The disk reports an error. Check it, then run the same command.",
        ),
        errno.EROFS: say(
            zh="檔案系統唯讀。請改為可寫後再執行同一個指令，或換個資料夾。",
            en="The file system is read-only. Make it writable and run the same command, or choose another folder.",
        ),
    }
    advice[errno.EFBIG] = say(
        zh="檔案超過這個磁碟或使用者的上限（ulimit -f）。請提高上限後再執行同一個指令，或換個資料夾。",
        en="The file would exceed the limit of this disk or user (ulimit -f). Raise it and run the same command, or "
        "choose another folder.",
    )
    advice[errno.EDQUOT] = advice[errno.ENOSPC]
    advice[errno.EACCES] = advice[errno.EPERM] = say(
        zh="沒有權限。請檢查擁有者與權限。", en="Permission denied. Check owner and permissions."
    )
    why = advice.get(error.errno or 0) or " ".join(str(error.strerror or error or type(error).__name__).split())
    return f"{error.filename}: {why}" if error.filename is not None else why
