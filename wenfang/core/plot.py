"""Curves as SVG files, for model cards and reports."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Curve:
    """One line of a panel."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Panel:
    """One diagram: curves over the same axes."""

    x_label: str
    y_label: str
    curves: Sequence[Curve]
    log_x: bool = False


def write_plot(path: Path, panels: Sequence[Panel]) -> None:
    """Draw the panels side by side. Text stays text, so that any font shows it; the same curves give the same file."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "wenfang", "axes.spines.top": False, "font.size": 9}):
        figure = Figure(figsize=(4.8 * len(panels), 3.2), layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for curve in panel.curves:
                axes.plot(curve.x, curve.y, label=curve.label, linewidth=1.2, marker="." if len(curve.x) < 30 else "")
            axes.set_xlabel(panel.x_label)
            axes.set_ylabel(panel.y_label)
            axes.set_xscale("log" if panel.log_x else "linear")
            axes.grid(alpha=0.25)
            if len(panel.curves) > 1:
                axes.legend(frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None})
