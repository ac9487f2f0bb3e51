"""Speed and loss of a run: for the progress line, the metrics file and the summary."""

import math
import time

from wenfang.core.artifact import Summary
from wenfang.core.hardware import peak_memory_bytes
from wenfang.core.language import say


class Meter:
    """Counts steps of one process.

    Args:
        flops_per_step: arithmetic of one optimiser step.
        peak_flops: what the machine could do in a second; the share of it that a run reaches is its MFU.
        characters_per_token: turns nats per token into bits per character; None leaves those out.
        losses: of the steps since the last line of metrics, when a run is continued between two lines.
    """

    def __init__(
        self, flops_per_step: float, peak_flops: float, characters_per_token: float | None, losses: list[float]
    ) -> None:
        self.losses = losses
        self._flops_per_step, self._peak_flops = flops_per_step, peak_flops
        self._characters_per_token = characters_per_token
        self._now = time.monotonic()
        self._window_s = 0.0
        self._window_steps = self._window_tokens = 0
        self._sums: dict[str, float] = {}
        self._speeds: list[tuple[float, float]] = []

    def add(self, loss: float, metrics: dict[str, float], tokens: int) -> float:
        """Count one step; returns the seconds it took."""
        now = time.monotonic()
        elapsed, self._now = now - self._now, now
        self.losses.append(loss)
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._window_s += elapsed
        self._window_steps += 1
        self._window_tokens += tokens
        self._speeds.append((tokens / elapsed, self._flops_per_step / elapsed / 1e9))
        return elapsed

    def note(self) -> str:
        """The live figures of the last step."""
        loss, (speed, gflops) = self.losses[-1], self._speeds[-1]
        unit = say(zh="位元／字", en="bits/char")
        bits = "".join(f" · {value:.3f} {unit}" for value in bits_of(loss, self._characters_per_token).values())
        mfu, memory = gflops * 1e9 / self._peak_flops, peak_memory_bytes() / 2**30
        return f"loss {loss:.3f}{bits} · {speed:,.0f} tokens/s · {gflops:.0f} GFLOP/s, MFU {mfu:.0%} · {memory:.1f} GiB"

    def window(self) -> dict[str, float]:
        """Means since the last call; empty when no step was counted."""
        if not self.losses or not self._window_steps:
            return {}
        loss = sum(self.losses) / len(self.losses)
        values = {
            "loss": loss,
            **bits_of(loss, self._characters_per_token),
            **{name: total / self._window_steps for name, total in self._sums.items()},
            "tokens_per_s": self._window_tokens / self._window_s,
            "gflop_per_s": self._window_steps * self._flops_per_step / self._window_s / 1e9,
            "mfu": self._window_steps * self._flops_per_step / self._window_s / self._peak_flops,
            "peak_memory_gib": peak_memory_bytes() / 2**30,
        }
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
        return {
            "tokens_per_s": round(sorted(s for s, _ in self._speeds)[middle]),
            "gflop_per_s": round(gflops),
            "mfu": round(gflops * 1e9 / self._peak_flops, 3),
        }


def bits_of(nats: float, characters_per_token: float | None) -> dict[str, float]:
    """`bits_per_character` of a mean loss, where that means something."""
    return {} if characters_per_token is None else {"bits_per_character": nats / math.log(2) / characters_per_token}
