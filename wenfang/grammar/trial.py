"""Judges grammars, and texts by them, in a process of its own: it may take too long, eat memory or crash without harm.

The process reads a line of JSON for each grammar, `{"kind", "fields", "specials"}`, and answers with one, `{"refused":
message or null}`; for a text, `{"kind", "fields", "text"}`, it answers `{"fulfilled": true or false}`. Run as
`python -m wenfang.grammar.trial`.
"""

import contextlib
import json
import os
import random
import sys
import threading
from typing import Any

from wenfang.core.errors import InputError
from wenfang.core.language import say
from wenfang.grammar.base import Grammar
from wenfang.grammar.kinds import KINDS, JsonSchema
from wenfang.grammar.limits import STACK_BYTES, TRIAL_CPU_S, TRIAL_MEMORY_BYTES, VERDICT_CPU_S, parser_limits
from wenfang.grammar.schema import refused, subschemas

STEPS = 64
"""Tokens of the rehearsal."""

BYTES = 256


def examine(grammar: Grammar, specials: list[str]) -> None:
    """Refuse a grammar that is faulty, cannot be guaranteed, or that no text fulfils.

    Args:
        specials: names of the special tokens that a Lark grammar may mention.

    Raises:
        InputError: what is wrong and where.
    """
    grammar.examine()
    error = _compile_error(grammar, specials)
    if error and isinstance(grammar, JsonSchema):
        raise _located(grammar, error) or InputError(_refusal(error))
    if error:
        raise InputError(_refusal(error))


def _compile_error(grammar: Grammar, specials: list[str]) -> str:
    """What llguidance has against it, or nothing."""
    from llguidance import LLExecutor, LLMatcher, LLTokenizer, TokenizerWrapper
    from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask_par

    tokenizer = LLTokenizer(TokenizerWrapper(_Bytes(specials)))
    matcher = LLMatcher(tokenizer, grammar.source(), log_level=0, limits=parser_limits())
    mask = allocate_token_bitmask(1, tokenizer.vocab_size)
    executor, dice = LLExecutor(1), random.Random(0)
    for _ in range(STEPS):
        if matcher.is_error() or matcher.is_stopped():
            break
        fill_next_token_bitmask_par(executor, [(matcher, 0)], mask)
        bits = mask.view("u1")[0]
        allowed = [i for i in range(BYTES + len(specials)) if bits[i // 8] >> (i % 8) & 1]
        if not allowed:
            return "" if matcher.is_accepting() else say(zh="沒有文字能滿足它", en="no text can fulfil it")
        matcher.consume_token(dice.choice(allowed))
    return str(matcher.get_error())


def _located(grammar: JsonSchema, error: str) -> InputError | None:
    """The innermost part of a schema that has the same fault on its own."""
    for path, subschema in reversed(list(subschemas(json.loads(grammar.schema)))):
        if "$ref" not in (text := json.dumps(subschema)) and _compile_error(JsonSchema(text), []) == error:
            return refused(path, _first_line(error))
    return None


def _refusal(error: str) -> str:
    return say(zh=f"文法無法使用：{_first_line(error)}。", en=f"The grammar cannot be used: {_first_line(error)}.")


def _first_line(error: str) -> str:
    """llguidance's message without its drawing, in the middle of which stands a regular expression's own error."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    detail = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), "")
    first = lines[0][:200].rstrip(".")
    return f"{first} {detail}".strip() if detail and detail not in first else first


class _Bytes:
    """A vocabulary of single bytes and special tokens: what a grammar allows is the same for every vocabulary."""

    def __init__(self, specials: list[str]) -> None:
        self.tokens = [*(bytes([i]) for i in range(BYTES)), *(name.encode() for name in specials), b"<end of text>"]
        self.special_token_ids = list(range(BYTES, len(self.tokens)))
        self.eos_token_id = len(self.tokens) - 1
        self.bos_token_id = None

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def _confine() -> None:
    """Least priority, bounded memory, and no core file when it crashes."""
    with contextlib.suppress(ImportError):  # Not on Windows, where the clock alone bounds it.
        import resource

        os.nice(5)
        resource.setrlimit(resource.RLIMIT_AS, (TRIAL_MEMORY_BYTES, TRIAL_MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _start_clock(seconds: int) -> None:
    """Let the system end this process after so much more processor time."""
    with contextlib.suppress(ImportError):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + 1 + seconds
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def _answer(asked: dict[str, Any]) -> dict[str, Any]:
    grammar = KINDS[asked["kind"]](**asked["fields"])
    if "text" in asked:
        return {"fulfilled": grammar.reread(asked["text"])}
    try:
        examine(grammar, asked["specials"])
        _start_clock(VERDICT_CPU_S)
        grammar.require_reader()
    except InputError as error:
        return {"refused": str(error)}
    return {"refused": None}


def _serve() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        _start_clock(VERDICT_CPU_S if "text" in asked else TRIAL_CPU_S)
        print(json.dumps(_answer(asked)), flush=True)


if __name__ == "__main__":
    _confine()
    threading.stack_size(STACK_BYTES // 2)
    server = threading.Thread(target=_serve)
    server.start()
    server.join()
