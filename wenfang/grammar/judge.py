"""Asks trial processes about grammars: several at a time, each ended when it takes too long."""

import atexit
import dataclasses
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import wenfang
from wenfang.core.errors import GrammarError
from wenfang.core.language import say
from wenfang.grammar.base import Grammar
from wenfang.grammar.limits import TRIAL_S
from wenfang.grammar.validation import BrokenPromise

AT_ONCE = 4
"""Trials that run side by side; one that takes long holds up none of the others."""

KEPT = 2
"""Idle processes kept for the next grammars."""

_idle: "list[subprocess.Popen[str]]" = []
_lock = threading.Lock()
_places = threading.Semaphore(AT_ONCE)


def judge(grammar: Grammar, specials: list[str]) -> None:
    """Have a grammar judged, whatever it does to the process that does it.

    Args:
        specials: names of the special tokens that a Lark grammar may mention.

    Raises:
        GrammarError: it is refused, or judging it takes too much time or memory.
    """
    asked = {"kind": grammar.kind, "fields": dataclasses.asdict(grammar), "specials": specials}
    with _places:
        answer = _ask(json.dumps(asked))
    if not answer:
        raise GrammarError(
            say(
                zh="文法太複雜：編譯時用完了時間、記憶體或堆疊。請簡化，例如減少規則的層數或重複次數。",
                en="The grammar is too complex: compiling it ran out of time, memory or stack. Simplify it, such as by "
                "fewer levels of rules or smaller repetitions.",
            )
        )
    if (reason := json.loads(answer)["refused"]) is not None:
        raise GrammarError(reason)


def verify(grammar: Grammar, text: str) -> bool:
    """Have a finished text read again, by `grammar.reread`, whatever that does to the process that does it.

    Raises:
        BrokenPromise: reading it takes too much time or memory.
    """
    with _places:
        answer = _ask(json.dumps({"kind": grammar.kind, "fields": dataclasses.asdict(grammar), "text": text}))
    if not answer:
        raise BrokenPromise(
            say(
                zh="生成的文字驗證不完：用完了時間或記憶體。請簡化文法。",
                en="The text could not be validated: that ran out of time or memory. Simplify the grammar.",
            )
        )
    return bool(json.loads(answer)["fulfilled"])


def _ask(question: str) -> str:
    """The answer's line; empty when the process died over the question."""
    process = _take()
    clock = threading.Timer(TRIAL_S, process.kill)
    clock.start()
    try:
        if process.stdin is None or process.stdout is None:
            return ""
        process.stdin.write(question + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
    except BrokenPipeError:
        answer = ""
    finally:
        clock.cancel()
    _give_back(process, alive=bool(answer))
    return answer


def _take() -> "subprocess.Popen[str]":
    with _lock:
        while _idle:
            process = _idle.pop()
            if process.poll() is None:
                return process
    source = str(Path(wenfang.__file__).parent.parent)
    path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        # -P: what lies in the working directory is not to be imported.
        [sys.executable, "-P", "-m", "wenfang.grammar.trial"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path},
        encoding="utf-8",
    )


def _give_back(process: "subprocess.Popen[str]", *, alive: bool) -> None:
    with _lock:
        if alive and len(_idle) < KEPT:
            _idle.append(process)
            return
    _end(process)


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


@atexit.register
def _end_all() -> None:
    with _lock:
        while _idle:
            _end(_idle.pop())
