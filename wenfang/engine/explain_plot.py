"""The strategies' choices as one SVG: what each wrote, and how it changed the first token's probabilities."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from wenfang.core.language import say
from wenfang.core.plot import svg_style
from wenfang.engine.explain import Explanation
from wenfang.tokenizer import Tokenizer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 12
"""Candidates for the first token that are shown."""

CELL_INCHES = 0.42


def draw(path: Path, explanations: Sequence[Explanation], tokenizer: Tokenizer) -> None:
    """Write the picture, as `svg_style` says."""
    from matplotlib.figure import Figure

    steps = max(len(found.steps) for found in explanations)
    height = CELL_INCHES * len(explanations)
    with svg_style(8):
        figure = Figure(figsize=(CELL_INCHES * (steps + COLUMNS) + 4, height + 1), layout="constrained")
        texts, first = figure.subplots(1, 2, width_ratios=[steps, COLUMNS])
        _draw_texts(texts, explanations, tokenizer, steps)
        _draw_first(first, explanations, tokenizer)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _draw_texts(axes: "Axes", explanations: Sequence[Explanation], tokenizer: Tokenizer, steps: int) -> None:
    """A row for each strategy: its tokens over the probability that it gave each of them."""
    axes.set_title(say(zh="所寫的詞元；下方：策略所見的機率（%）", en="tokens written; below: probability it saw (%)"))
    values = torch.full((len(explanations), steps), float("nan"))
    for row, found in enumerate(explanations):
        for column, step in enumerate(found.steps):
            values[row, column] = step.seen
            axes.text(column, row - 0.15, _label(tokenizer, step.token), ha="center", va="center", fontsize=10)
            axes.text(column, row + 0.3, f"{100 * step.seen:.0f}", ha="center", va="center", fontsize=6)
    _grid(axes, values, [found.name for found in explanations])
    axes.set_xticks(range(0, steps, 5), [str(column + 1) for column in range(0, steps, 5)])


def _draw_first(axes: "Axes", explanations: Sequence[Explanation], tokenizer: Tokenizer) -> None:
    """The first token's candidates: their probabilities under each strategy."""
    axes.set_title(say(zh="第一個詞元的機率（%）", en="probability of the first token (%)"))
    bare = next(found for found in explanations if found.name == "temperature 1")
    tokens = bare.first_V.topk(min(COLUMNS, len(bare.first_V))).indices
    values = torch.stack([found.first_V[tokens] for found in explanations])
    for row, line in enumerate(values.tolist()):
        for column, value in enumerate(line):
            if value > 0:
                axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=7)
    _grid(axes, values, [])
    axes.set_xticks(range(len(tokens)), [_label(tokenizer, token) for token in tokens.tolist()], fontsize=10)


def _grid(axes: "Axes", values: torch.Tensor, rows: list[str]) -> None:
    axes.imshow(values.numpy(), cmap="YlOrBr", vmin=0, vmax=1.4, aspect="auto")
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _label(tokenizer: Tokenizer, token: int) -> str:
    """A token as it can stand in a picture."""
    text = tokenizer.decode([token])
    if not text:
        return "∎"  # A special token, such as the end.
    return text.replace("\n", "⏎").replace(" ", "␣").replace("$", r"\$")
