"""Figures of a deep decoder from two shallow ones: layers repeat, so what they take is linear in how often."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass

from wenfang.model.config import DecoderConfig

Figures = dict[str, int]
Measure = Callable[[DecoderConfig, int, int], Figures]
"""Figures of a decoder, each linear in the number of repeats. The numbers are the layers where its first repeat ends
and where its last one begins."""
FEW, MORE = 2, 3
"""Repeats of the decoders that are measured: the first and the last one, and one between."""


@dataclass(frozen=True)
class _Repeats:
    """Layers `start` and after are `count` times the same `period` layers."""

    start: int
    period: int
    count: int


def measure_depth(config: DecoderConfig, measure: Measure) -> Figures:
    """What `measure` says of a decoder, found on shallower ones where that spares layers."""
    found = _find([_kind(config, layer) for layer in range(config.layers)])
    if found is None:
        return measure(config, config.layers // 2, config.layers // 2)
    few, more = (
        measure(_shortened(config, found, count), found.start + found.period, found.start + (count - 1) * found.period)
        for count in (FEW, MORE)
    )
    return {name: figure + (found.count - FEW) * (more[name] - figure) for name, figure in few.items()}


def _kind(config: DecoderConfig, layer: int) -> Hashable:
    """What a layer has in common with others that take as much."""
    mixer = config.mixer(layer)
    retrieves = config.retro is not None and layer in config.retro.layers
    first = mixer == "rwkv7" and layer == config.mixers.index("rwkv7")  # It mixes in no earlier layer's values.
    return mixer, config.rope(layer), config.window(layer), config.experts(layer) is not None, retrieves, first


def _find(kinds: list[Hashable]) -> _Repeats | None:
    """The repeats that save the most layers; None where measuring two shorter decoders saves none."""
    layers = len(kinds)
    best, most = None, layers
    for period in range(1, layers // MORE):
        start = 0
        for end in range(period, layers + 1):
            if end < layers and kinds[end] == kinds[end - period]:
                continue
            count = (end - start) // period
            saved = period * (2 * count - FEW - MORE)
            if saved > most:
                best, most = _Repeats(start, period, count), saved
            start = end - period + 1
    return best


def _shortened(config: DecoderConfig, repeats: _Repeats, count: int) -> DecoderConfig:
    """The decoder with so many repeats."""
    resumed = repeats.start + repeats.count * repeats.period
    kept = [*range(repeats.start + count * repeats.period), *range(resumed, config.layers)]
    changes: dict[str, object] = {
        "layers": len(kept),
        "mixers": tuple(map(config.mixer, kept)),
        "ropes": tuple(map(config.rope, kept)),
        "windows": tuple(map(config.window, kept)),
    }
    if config.moe:
        having = tuple(config.experts(layer) is not None for layer in kept)
        changes["moe"] = config.moe.model_copy(update={"layers": having})
    if config.retro:
        reading = tuple(place for place, layer in enumerate(kept) if layer in config.retro.layers)
        changes["retro"] = config.retro.model_copy(update={"layers": reading})
    return config.model_copy(update=changes)
