"""Results as a table and as a plot."""

from collections.abc import Sequence
from pathlib import Path

from wenfang.core.plot import Curve, Panel, write_plot
from wenfang.train.compare.config import CompareConfig
from wenfang.train.compare.result import Result

AXES = (("tokens", "tokens"), ("flops", "FLOPs"), ("seconds", "seconds of training"))


def markdown(results: Sequence[Result], config: CompareConfig) -> str:
    """A page with the budget, the table and the plot."""
    tokens = config.steps * config.accumulate * config.batch * config.context
    lengths = list(dict.fromkeys(label for result in results for label in result.lengths))
    head = ["architecture", "bits/byte", *lengths, "parameters", "active", "MFLOP/token", "s", "training MB"]
    head += ["cache kB", "decode tokens/s"]
    lines = [head, ["---", *("---:" for _ in head[1:])]]
    lines += [_row(result, lengths) for result in sorted(results, key=lambda result: result.bits_per_byte)]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    note = (
        "\nColumns of lengths: bits per byte in the second half of rows that many times as long as those of training.\n"
    )
    return (
        f"# Architectures compared\n\n{tokens:,} tokens in rows of {config.context}, seed {config.seed}, "
        f"{config.optimizer.name}.\n\n{table}\n{note if lengths else ''}\n![Bits per byte](curves.svg)\n"
    )


def draw(results: Sequence[Result], path: Path) -> None:
    """Bits per byte against tokens, arithmetic and time, as SVG."""
    panels = []
    for attribute, label in AXES:
        curves = [
            Curve(result.name, [getattr(p, attribute) for p in result.curve], [p.bits_per_byte for p in result.curve])
            for result in results
        ]
        panels.append(Panel(label, "bits per byte", curves))
    write_plot(path, panels)


def _row(result: Result, lengths: Sequence[str]) -> list[str]:
    return [
        result.name,
        f"{result.bits_per_byte:.4f}",
        *(f"{result.lengths[label]:.3f}" if label in result.lengths else "–" for label in lengths),
        f"{result.parameters:,}",
        f"{result.active_parameters:,}",
        f"{result.flops_per_token / 1e6:.2f}",
        f"{result.seconds:.0f}",
        f"{result.training_bytes / 1e6:.0f}",
        f"{result.cache_bytes / 1e3:.1f}",
        f"{result.decode_tokens_per_s:.0f}",
    ]
