"""Speed and loss of a run: for the progress line, the metrics file and the summary."""

import math
import time
from collections.abc import Callable
from typing import Protocol

from wenfang.core.artifact import Summary
from wenfang.core.hardware import peak_memory_bytes
from wenfang.core.language import say


class Text(Protocol):
    """How much text is behind each unit of the loss; None where it is not in nats per token."""

    @property
    def characters_per_token(self) -> float | None: ...

    @property
    def bytes_per_token(self) -> float | None: ...


class Meter:
    """Counts steps of one process.

    Args:
        flops_per_step: arithmetic of one optimiser step.
        peak_flops: what the machine could do in a second; the share of it that a run reaches is its MFU.
        data: what is learned; its text turns nats per token into bits per byte and per character.
        losses: of the steps since the last line of metrics, when a run is continued between two lines.
        memory: the peak memory so far, in bytes.
    """

    def __init__(
        self,
        flops_per_step: float,
        peak_flops: float,
        data: Text,
        losses: list[float],
        *,
        memory: Callable[[], int] = peak_memory_bytes,
    ) -> None:
        self.losses = losses
        self._flops_per_step, self._peak_flops = flops_per_step, peak_flops
        self._data, self._memory = data, memory
        self._now = time.monotonic()
        self._window_s = self._window_waited_s = 0.0
        self._window_steps = self._window_tokens = 0
        self._sums: dict[str, float] = {}
        self._speeds: list[tuple[float, float]] = []
        self._waits: list[tuple[float, float]] = []

    def add(self, loss: float, metrics: dict[str, float], tokens: int, *, waited_s: float = 0.0) -> float:
        """Count one step, which waited so long for its data; returns the seconds it took."""
        now = time.monotonic()
        elapsed, self._now = now - self._now, now
        self.losses.append(loss)
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._window_s += elapsed
        self._window_waited_s += waited_s
        self._waits.append((waited_s, elapsed))
        self._window_steps += 1
        self._window_tokens += tokens
        self._speeds.append((tokens / elapsed, self._flops_per_step / elapsed / 1e9))
        return elapsed

    def note(self) -> str:
        """The live figures of the last step."""
        loss, (speed, gflops) = self.losses[-1], self._speeds[-1]
        units = {
            "bits_per_byte": say(zh="位元／位元組", en="bits/byte"),
            "bits_per_character": say(zh="位元／字", en="bits/char"),
        }
        bits = "".join(f" · {value:.3f} {units[name]}" for name, value in bits_of(loss, self._data).items())
        mfu, memory = gflops * 1e9 / self._peak_flops, self._memory() / 2**30
        return f"loss {loss:.3f}{bits} · {speed:,.0f} tokens/s · {gflops:.0f} GFLOP/s, MFU {mfu:.0%} · {memory:.1f} GiB"

    def window(self) -> dict[str, float]:
        """Means since the last call; empty when no step was counted."""
        if not self.losses or not self._window_steps:
            return {}
        loss = sum(self.losses) / len(self.losses)
        values = {
            "loss": loss,
            **bits_of(loss, self._data),
            **{name: total / self._window_steps for name, total in self._sums.items()},
            "tokens_per_s": self._window_tokens / self._window_s,
            "gflop_per_s": self._window_steps * self._flops_per_step / self._window_s / 1e9,
            "mfu": self._window_steps * self._flops_per_step / self._window_s / self._peak_flops,
            "peak_memory_gib": self._memory() / 2**30,
            "data_wait": self._window_waited_s / self._window_s,
        }
        self._window_waited_s = 0.0
        self._window_s, self._window_steps, self._window_tokens, self._sums = 0.0, 0, 0, {}
        self.losses.clear()
        self.restart()
        return values

    def restart(self) -> None:
        """Leave out of the speed what happened since the last step."""
        self._now = time.monotonic()

    def summary(self) -> Summary:
        """Median speed over the steps of this process, so that compilation does not blur it."""
        if not self._speeds:
            return {}
        middle = len(self._speeds) // 2
        gflops = sorted(g for _, g in self._speeds)[middle]
        later = self._waits[1:] or self._waits  # The first batch could not be made ahead.
        return {
            "tokens_per_s": round(sorted(s for s, _ in self._speeds)[middle]),
            "gflop_per_s": round(gflops),
            "mfu": round(gflops * 1e9 / self._peak_flops, 3),
            "data_wait": round(sum(waited for waited, _ in later) / sum(elapsed for _, elapsed in later), 4),
        }


def bits_of(nats: float, data: Text) -> dict[str, float]:
    """`bits_per_byte` and `bits_per_character` of a mean loss, where they mean something."""
    amounts = {"bits_per_byte": data.bytes_per_token, "bits_per_character": data.characters_per_token}
    return {name: nats / math.log(2) / amount for name, amount in amounts.items() if amount}
