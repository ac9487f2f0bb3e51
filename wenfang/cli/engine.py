"""`wenfang engine`: look into how text is generated."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table

from wenfang.cli.groups import arguments_group, commands_group, options_group
from wenfang.core.language import say

if TYPE_CHECKING:
    from wenfang.engine.explain import Explanation
    from wenfang.tokenizer import Tokenizer

_MODEL = say(
    zh="模型資料夾、GGUF 檔，或含有模型的執行結果（runs/…）。",
    en="A model folder, a GGUF file, or a run that made a model (runs/…).",
)
_PROMPT = say(zh="要接著寫的文字，或問句。", en="The text to continue, or a question.")
_OUT = say(zh="要畫成的 SVG 檔；已有的會被取代。", en="SVG file to draw; one that is there is replaced.")
_CHAT = say(
    zh="把文字當作對話中的問句；--no-chat 則直接接著寫。", en="Take the text as a question; --no-chat continues it."
)
_TOKENS = say(zh="每種策略寫幾個詞元。", en="Tokens that each strategy writes.")
_SEED = say(zh="隨機策略共用的種子。", en="The seed of every random strategy.")


def explain(
    model: Annotated[Path, Parameter(help=_MODEL)],
    prompt: Annotated[str, Parameter(help=_PROMPT)],
    /,
    *,
    out: Annotated[Path, Parameter(help=_OUT)],
    chat: Annotated[bool, Parameter(help=_CHAT)] = True,
    max_tokens: Annotated[int, Parameter(help=_TOKENS)] = 20,
    seed: Annotated[int, Parameter(help=_SEED)] = 0,
) -> None:
    """Let every decoding strategy answer the same prompt and draw the probabilities it saw."""
    from wenfang.engine import Engine
    from wenfang.engine.explain import explain as explain_all
    from wenfang.engine.explain_plot import draw
    from wenfang.engine.load import load_tokenizer
    from wenfang.model import load_model
    from wenfang.studio import find_model

    folder = find_model(model).model
    decoder = load_model(folder)
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.chat([{"role": "user", "content": prompt}]) if chat else tokenizer.encode(prompt)
    with contextlib.closing(Engine(decoder, tokenizer, name="explain", max_batch=8)) as engine:
        explanations = explain_all(engine, decoder, ids, max_tokens=max_tokens, seed=seed)
    draw(out, explanations, tokenizer)
    Console().print(_table(explanations, tokenizer))


def _table(explanations: list["Explanation"], tokenizer: "Tokenizer") -> Table:
    table = Table(box=None, pad_edge=False)
    for title in (say(zh="策略", en="strategy"), say(zh="選項", en="choices"), say(zh="機率", en="probability")):
        table.add_column(title, justify="left" if not table.columns else "right", no_wrap=True)
    table.add_column(say(zh="文字", en="text"), overflow="fold")
    for found in explanations:
        choices = sum(step.choices for step in found.steps) / len(found.steps)
        mean = sum(step.probability for step in found.steps) / len(found.steps)
        table.add_row(found.name, f"{choices:,.0f}", f"{mean:.2f}", found.text.replace("\n", "⏎"))
    return table


def _app() -> App:
    room = App(
        name="engine",
        group_commands=commands_group(),
        group_arguments=arguments_group(),
        group_parameters=options_group(),
    )
    room.command(
        explain,
        name="explain",
        help=say(
            zh="讓每種解碼策略回答同一句話，畫出它所見的機率。",
            en="Let every decoding strategy answer the same prompt and draw the probabilities it saw.",
        ),
        help_epilogue=say(zh="例：", en="Example:")
        + '\n\n- `wenfang engine explain models/poet "寫一首五言絕句，題為〈秋夜〉。" --out decoding.svg`',
    )
    return room


engine = _app()
