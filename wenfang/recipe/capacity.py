"""Whether this machine has the memory and the disk for what is about to run."""

from collections.abc import Mapping
from pathlib import Path

from wenfang.core.errors import CapacityError
from wenfang.core.forecast import Forecast
from wenfang.core.hardware import detect, free_disk_bytes
from wenfang.core.language import say
from wenfang.recipe.figures import size


def check_capacity(forecasts: Mapping[str, Forecast], folder: Path, partial: Mapping[str, Path]) -> None:
    """Refuse work that cannot fit. Memory is needed by one stage at a time, disk by all of them.

    Args:
        forecasts: what each stage about to run expects to cost, by its name.
        folder: where outputs go.
        partial: where each of them works. What an interrupted run left there is disk that it has already.

    Raises:
        CapacityError: too little memory, or too little free disk at `folder`.
    """
    memory = detect().memory_bytes
    for name, forecast in forecasts.items():
        limit = memory if forecast.limit_bytes is None else forecast.limit_bytes
        if forecast.memory_bytes > limit:
            needed, has = size(forecast.memory_bytes), size(limit)
            options = ", ".join(forecast.lower) or say(zh="模型或批次", en="the model's size or the batch")
            raise CapacityError(
                say(
                    zh=f"{name} 約需 {needed} 記憶體，這台機器有 {has}。請調小 {options}，或換較大的機器。",
                    en=f"{name} needs about {needed} of memory; this machine has {has}. "
                    f"Lower {options}, or use a larger machine.",
                )
            )
    disk = sum(max(forecast.disk_bytes - _size_bytes(partial[name]), 0) for name, forecast in forecasts.items())
    free = free_disk_bytes(folder)
    if disk > free:
        raise CapacityError(
            say(
                zh=f"約需 {size(disk)} 磁碟空間，{str(folder)!r} 只剩 {size(free)}。請騰出空間或換資料夾。",
                en=f"This needs about {size(disk)} of disk; {size(free)} are free at {str(folder)!r}. "
                "Free some space or choose another folder.",
            )
        )


def _size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
