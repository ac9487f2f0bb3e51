"""The closing table of a run: what each stage cost and achieved."""

from collections.abc import Sequence
from html import escape

from wenfang.recipe.figures import duration
from wenfang.studio.run import StageView
from wenfang.studio.words import Words

FIGURES = {
    "bits_per_byte": "位元／位元組",
    "bits_per_character": "位元／字",
    "characters": "字數",
    "characters_per_token": "字／詞元",
    "data_wait": "等候資料比例",
    "epochs": "輪數",
    "gflop_per_s": "GFLOP／秒",
    "long_titles_left_out": "題目過長略去",
    "loss": "損失",
    "nats_per_character": "nats／字",
    "packing_waste": "填充比例",
    "parameters": "參數",
    "people_regular_qijue": "人：七絕合律",
    "poems": "詩",
    "regular": "全合律",
    "regular_qijue": "七絕合律",
    "regular_share": "合律比例",
    "rhyme": "押韻",
    "shuffled_regular_qijue": "打亂：七絕合律",
    "simplified_left_out": "簡體略去",
    "tokens": "詞元",
    "tokens_per_s": "詞元／秒",
    "train_conversations": "訓練對話",
    "train_poems": "訓練詩",
    "train_poets": "訓練詩人",
    "validation_conversations": "驗證對話",
    "validation_loss": "驗證損失",
    "validation_poems": "驗證詩",
    "validation_poets": "驗證詩人",
    "vocab_size": "詞表",
    "well_formed": "格式正確",
}
"""Chinese names of the figures that stages report; one without a name here is shown by its own."""


def account_html(stages: Sequence[StageView], words: Words) -> str:
    """The table as HTML, everything read from files escaped."""
    heads = "".join(f'<th scope="col">{escape(words(key))}</th>' for key in ("stage", "time", "result"))
    rows = "".join(_row(stage, words) for stage in stages)
    total = sum(stage.seconds or 0.0 for stage in stages)
    return (
        f'<table class="account"><caption>{escape(words("account"))}</caption><thead><tr>{heads}</tr></thead>'
        f'<tbody>{rows}</tbody><tfoot><tr><th scope="row">{escape(words("total"))}</th>'
        f"<td>{duration(total)}</td><td></td></tr></tfoot></table>"
    )


def _row(stage: StageView, words: Words) -> str:
    items = "".join(f"<li>{_figure(name, value, words)}</li>" for name, value in stage.summary.items())
    state = {"running": words("running"), "stopped": words("unfinished")}.get(stage.state, "–")
    time = duration(stage.seconds) if stage.seconds is not None else state
    return (
        f'<tr><th scope="row">{escape(stage.name)}<small>{escape(stage.uses)}</small></th>'
        f"<td>{escape(time)}</td><td><ul>{items}</ul></td></tr>"
    )


def _figure(name: str, value: float | str, words: Words) -> str:
    plain = name.replace("_", " ")
    label = FIGURES.get(name, plain) if words.language == "zh" else plain
    if isinstance(value, float):
        shown = f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    else:
        shown = f"{value:,}" if isinstance(value, int) else value
    return f"<span>{escape(label)}</span> {escape(shown)}"
