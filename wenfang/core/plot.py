"""Curves as SVG files, for model cards and reports."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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


@contextmanager
def svg_style(font_size: float) -> Iterator[None]:
    """matplotlib's settings for SVG files: text stays text, so that any font shows it; the same content gives the same
    file. Sizes are in points."""
    from matplotlib import rc_context

    with (
        warnings.catch_warnings(),
        rc_context(
            {"svg.fonttype": "none", "svg.hashsalt": "wenfang", "axes.spines.top": False, "font.size": font_size}
        ),
    ):
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # Whoever looks at it has the font.
        yield


def write_plot(path: Path, panels: Sequence[Panel]) -> None:
    """Draw the panels side by side, as `svg_style` says."""
    from matplotlib.figure import Figure

    with svg_style(9):
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
