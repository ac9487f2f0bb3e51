"""`wenfang chat`: talk with a model in the terminal."""

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console

from wenfang.cli.speculation import Ahead, Draft, LookupTokens, speculation
from wenfang.cli.weights import Quantize
from wenfang.core.errors import InputError
from wenfang.core.language import language, say

if TYPE_CHECKING:
    from wenfang.engine import Delta, Engine, SamplingParams

PROMPT = "› "
CONTROLS = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - {ord("\n"), ord("\t")}, "\ufffd")
QUIT = ("/quit", "/exit", "/離開")

_MODEL = say(
    zh="模型資料夾、GGUF 檔，或含有模型的執行結果（runs/…）。",
    en="A model folder, a GGUF file, or a run that made a model (runs/…).",
)
_ONCE = say(zh="只問這一句，把回覆印到標準輸出。", en="Ask only this and print the reply to standard output.")
_TEMPERATURE = say(
    zh="高則多變，低則穩定；0 取最可能的字。", en="Higher is bolder, lower steadier; 0 takes the likeliest."
)
_TOP_P = say(zh="只取機率合計到此為止的字。", en="Only the likeliest tokens with this total probability.")
_MAX_TOKENS = say(
    zh="回覆最多幾個詞元；預設寫到上下文為止。", en="Longest reply in tokens; by default up to the context."
)
_SEED = say(zh="同樣的種子，同樣的回覆。", en="Same seed, same replies.")
_REMEMBER = say(
    zh="讓模型讀到先前的對話。詩人是以單句題目教成的，預設不讀。",
    en="Let the model read earlier turns. A poet is taught single requests, so by default it does not.",
)


def chat(
    model: Annotated[Path, Parameter(help=_MODEL)],
    /,
    *,
    once: Annotated[str | None, Parameter(help=_ONCE)] = None,
    temperature: Annotated[float, Parameter(help=_TEMPERATURE)] = 1.0,
    top_p: Annotated[float, Parameter(help=_TOP_P)] = 0.95,
    max_tokens: Annotated[int | None, Parameter(help=_MAX_TOKENS)] = None,
    seed: Annotated[int | None, Parameter(help=_SEED)] = None,
    remember: Annotated[bool, Parameter(negative="", help=_REMEMBER)] = False,
    draft: Draft = None,
    lookup: LookupTokens = None,
    look_ahead: Ahead = False,
    quantize: Quantize = None,
) -> None:
    """Talk with a model in the terminal. Ctrl-C stops a reply, Ctrl-D or /quit leaves."""
    from wenfang.engine import Engine, SamplingParams
    from wenfang.studio import find_model

    params = SamplingParams(temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed)
    if once is not None:
        _check_text(once)
    guesser = speculation(draft, lookup, look_ahead)
    engine = Engine.load(find_model(model).model, speculation=guesser, quantize=quantize)
    with contextlib.closing(engine):
        if once is None:
            _converse(engine, params, remember=remember)
            return
        for delta in _reply(engine, params, [], once):
            _show(delta.text)
        print()


def _converse(engine: "Engine", params: "SamplingParams", *, remember: bool) -> None:
    """Read questions and write replies until the input ends. Figures and verdicts go to standard error."""
    from wenfang.studio.verse import read_sheet, verdict_line
    from wenfang.studio.words import Words

    console, words = Console(stderr=True, highlight=False), Words(language())
    earlier: list[tuple[str, str]] = []
    for turn, question in enumerate(_questions()):
        asked = replace(params, seed=None if params.seed is None else params.seed + turn)
        started, answer, tokens, guesses = time.monotonic(), "", 0, ""
        try:
            for delta in _reply(engine, asked, earlier if remember else [], question):
                _show(delta.text)
                answer += delta.text
                tokens = delta.completion_tokens
                guesses = _guesses(delta)
            print()
        except KeyboardInterrupt:
            print()
            console.print(say(zh="（已停筆）", en="(stopped)"), style="dim")
            continue
        except InputError as error:  # Such as a question longer than the context: the next one may do.
            console.print(str(error), style="red", markup=False)
            continue
        earlier.append((question, answer))
        speed = tokens / max(time.monotonic() - started, 1e-9)
        notes = [words("speed", tokens=tokens, speed=speed) + guesses]
        if (sheet := read_sheet(question, answer)) is not None:
            notes.insert(0, verdict_line(sheet, words))
        console.print("\n".join(notes), style="dim", markup=False, soft_wrap=True)


def _guesses(delta: "Delta") -> str:
    """How well speculation went, where there was any."""
    if not delta.drafted:
        return ""
    return say(
        zh=f"，猜 {delta.drafted} 中 {delta.accepted}", en=f", {delta.accepted} of {delta.drafted} guesses right"
    )


def _reply(
    engine: "Engine", params: "SamplingParams", earlier: list[tuple[str, str]], question: str
) -> Iterator["Delta"]:
    from wenfang.studio.prompt import fit_prompt

    return engine.stream(fit_prompt(engine, earlier, question), params)


def _show(text: str) -> None:
    """Print a piece of a reply; on a terminal without control codes, which a model could use to rewrite the screen."""
    print(text.translate(CONTROLS) if sys.stdout.isatty() else text, end="", flush=True)


def _questions() -> Iterator[str]:
    """Lines a person types, blank ones left out. Ends with the input, a word such as /quit, or Ctrl-C."""
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):  # Line editing that knows wide characters; not on every system.
            import readline  # noqa: F401
    while True:
        try:
            line = input(PROMPT if sys.stdin.isatty() else "").strip()
            _check_text(line)
        except (EOFError, KeyboardInterrupt):
            if sys.stdin.isatty():
                print()
            return
        except UnicodeDecodeError:
            raise _not_utf8() from None
        if line in QUIT:
            return
        if line:
            yield line


def _check_text(text: str) -> None:
    """Refuse bytes that the terminal passed on without being text.

    Raises:
        InputError: `text` is not valid Unicode.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _not_utf8() from None


def _not_utf8() -> InputError:
    return InputError(
        say(
            zh="輸入的文字不是 UTF-8。請把終端機或檔案改為 UTF-8。",
            en="The text is not UTF-8. Set the terminal, or save the file, to UTF-8.",
        )
    )
