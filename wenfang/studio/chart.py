"""Training curves as options for ECharts: thin ink on paper."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from wenfang.studio.words import Words

INK, PALE_INK, RULE, CINNABAR = "#2c2722", "#756b5e", "#e2d9c6", "#a8382b"
SERIF = '"Noto Serif CJK TC", "Noto Serif TC", "Source Han Serif TC", "Songti TC", "PMingLiU", serif'
MOST_POINTS = 400
"""More points than a chart is wide would only cost time."""

CURVES = (
    ("loss", "validation_loss"),
    ("bits_per_character", "validation_bits_per_character"),
    ("tokens_per_s", None),
)
"""What is drawn: a measured series and the validation series that belongs to it."""

Points = Sequence[tuple[float, float]]


def thin(points: Points, most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most `most` points: means of equal runs, stamped with each run's last step."""
    if len(points) <= most:
        return list(points)
    bounds = [round(i * len(points) / most) for i in range(most + 1)]
    runs = (points[a:b] for a, b in pairwise(bounds))
    return [(run[-1][0], sum(value for _, value in run) / len(run)) for run in runs]


def curve_options(name: str, measured: Points, validation: Points, words: Words) -> dict[str, Any]:
    """Options of one chart; always two series, so that an update only moves lines."""
    axis = {
        "axisLine": {"lineStyle": {"color": RULE}},
        "axisTick": {"show": False},
        "axisLabel": {"color": PALE_INK, "fontFamily": SERIF, "fontSize": 11, "hideOverlap": True},
        "splitLine": {"lineStyle": {"color": RULE, "type": [2, 4]}},
    }
    return {
        "animation": False,
        "aria": {"enabled": True, "description": f"{words(name)}: {_describe(measured)}"},
        "textStyle": {"fontFamily": SERIF, "color": INK},
        "grid": {"left": 8, "right": 14, "top": 14, "bottom": 8, "containLabel": True},
        "tooltip": {
            "trigger": "axis",
            "backgroundColor": "#fffdf6",
            "borderColor": RULE,
            "textStyle": {"color": INK, "fontFamily": SERIF, "fontSize": 12},
            "axisPointer": {"lineStyle": {"color": PALE_INK}},
        },
        "xAxis": {"type": "value", "min": 0, "max": "dataMax", **axis, "splitLine": {"show": False}},
        "yAxis": {"type": "value", "scale": name != "tokens_per_s", "splitNumber": 4, **axis},
        "series": [
            {
                "name": words("training_line"),
                "type": "line",
                "showSymbol": False,
                "data": [[step, round(value, 4)] for step, value in thin(measured)],
                "lineStyle": {"color": INK, "width": 1.4},
                "itemStyle": {"color": INK},
            },
            {
                "name": words("validation"),
                "type": "line",
                "symbol": "circle",
                "symbolSize": 5,
                "data": [[step, round(value, 4)] for step, value in thin(validation)],
                "lineStyle": {"color": CINNABAR, "width": 1.2},
                "itemStyle": {"color": CINNABAR},
            },
        ],
    }


def _describe(points: Points) -> str:
    return f"{points[0][1]:,.4g} → {points[-1][1]:,.4g}" if points else ""
