"""`wenfang chat`: talk with a model in the terminal."""

import sys
import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from wenfang.cli.orders import Conversation, obey, read_schema
from wenfang.cli.questions import check_text, questions, unseen_typing
from wenfang.cli.speculation import Ahead, Draft, LookupTokens, speculation
from wenfang.cli.talker import Piece, Talker, open_talker
from wenfang.cli.weights import Quantize
from wenfang.core.errors import InputError, WenfangError
from wenfang.core.language import language, say

CONTROLS = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - {ord("\n"), ord("\t")}, "\ufffd")

_MODEL = say(
    zh="模型資料夾、GGUF 檔、含有模型的執行結果（runs/…），或伺服器的網址（http://…）。",
    en="A model folder, a GGUF file, a run that made a model (runs/…), or a server's address (http://…).",
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
_SCHEMA = say(
    zh="JSON Schema 檔；每則回覆都是符合它的 JSON。", en="File with a JSON Schema; every reply is JSON that fulfils it."
)
_SYSTEM = say(zh="先告訴模型的話。", en="What the model is told before everything else.")
CUT = say(zh="（到了長度上限，沒有寫完）", en="(cut off at the longest reply)")


def chat(
    model: Annotated[str | Path, Parameter(help=_MODEL)],
    /,
    *,
    once: Annotated[str | None, Parameter(help=_ONCE)] = None,
    system: Annotated[str, Parameter(help=_SYSTEM)] = "",
    temperature: Annotated[float, Parameter(help=_TEMPERATURE)] = 1.0,
    top_p: Annotated[float, Parameter(help=_TOP_P)] = 0.95,
    max_tokens: Annotated[int | None, Parameter(help=_MAX_TOKENS)] = None,
    seed: Annotated[int | None, Parameter(help=_SEED)] = None,
    schema: Annotated[Path | None, Parameter(help=_SCHEMA)] = None,
    remember: Annotated[bool, Parameter(negative="", help=_REMEMBER)] = False,
    draft: Draft = None,
    lookup: LookupTokens = None,
    look_ahead: Ahead = False,
    quantize: Quantize = None,
) -> None:
    """Talk with a model in the terminal. Ctrl-C stops a reply, Ctrl-D or /quit leaves, /help lists more."""
    if once is not None:
        check_text(once)
        if not once.strip():
            raise InputError(say(zh="`--once` 是空的。請寫要問的話。", en="`--once` is empty. Give the question."))
    rules = None if schema is None else read_schema(schema)
    talk = Conversation(system, temperature, top_p, max_tokens, seed, remember=remember, schema=rules)
    guesser = speculation(draft, lookup, look_ahead) if draft or lookup is not None or look_ahead else None
    with open_talker(str(model), talk, speculation=guesser, quantize=quantize) as talker:
        if once is None:
            _converse(talker, talk)
            return
        _, piece = _write(talker, talk, once)
        if piece.cut and talk.schema:
            print(CUT, file=sys.stderr)


def _converse(talker: Talker, talk: Conversation) -> None:
    """Read questions and write replies until the input ends. Figures and verdicts go to standard error."""
    console = Console(stderr=True, highlight=False)
    for question in questions():
        try:
            if question.startswith("/"):
                console.print(obey(talk, question), markup=False, soft_wrap=True)
                continue
            _answer(talker, talk, question, console)
        except KeyboardInterrupt:
            console.print(say(zh="（已停筆）", en="(stopped)"), style="dim")
        except WenfangError as error:  # Such as a question longer than the context: the next may do.
            console.print(str(error), style="red", markup=False)


def _answer(talker: Talker, talk: Conversation, question: str, console: Console) -> None:
    from wenfang.studio.verse import read_sheet, verdict_line
    from wenfang.studio.words import Words

    words = Words(language())
    started = time.monotonic()
    with unseen_typing():
        answer, last = _write(talker, talk, question)
    talk.turns.append((question, answer))
    speed = last.tokens / max(time.monotonic() - started, 1e-9)
    notes = [words("speed", tokens=last.tokens, speed=speed) + _guesses(last)]
    if last.cut:
        notes.insert(0, CUT)
    if (sheet := read_sheet(question, answer)) is not None:
        notes.insert(0, verdict_line(sheet, words))
    console.print("\n".join(notes), style="dim", markup=False, soft_wrap=True)


def _write(talker: Talker, talk: Conversation, question: str) -> tuple[str, Piece]:
    """Show a reply as it comes, on lines of its own however it ends; returns its text and its last piece."""
    answer, piece = "", None
    try:
        for piece in talker.reply(talk, question):
            _show(piece.text)
            answer += piece.text
    finally:
        if piece is not None:
            print()
    return answer, piece or Piece("", 0)


def _guesses(piece: Piece) -> str:
    """How well speculation went, where there was any."""
    if not piece.drafted:
        return ""
    return say(
        zh=f"，猜 {piece.drafted} 中 {piece.accepted}", en=f", {piece.accepted} of {piece.drafted} guesses right"
    )


def _show(text: str) -> None:
    """Print a piece of a reply; on a terminal without control codes, which a model could use to rewrite the screen."""
    print(text.translate(CONTROLS) if sys.stdout.isatty() else text, end="", flush=True)
