"""Where training computes: a GPU where there is one, the processor otherwise."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import nn
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from torch.utils._triton import has_triton

from wenfang.core.errors import InputError
from wenfang.core.hardware import cache_folder, detect, peak_memory_bytes
from wenfang.core.language import say

_COMPILED = "TORCHINDUCTOR_CACHE_DIR"
_THERE: dict[str, Callable[[], bool]] = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
"""Whether this machine and this build of torch have a kind of device."""


def choose(name: str) -> torch.device:
    """The device of a config's `device`; `auto` takes a GPU where there is one. Each process of a job has its own.

    Raises:
        InputError: there is no such device, or fewer GPUs than processes on this machine.
    """
    if name == "auto":
        name = next((kind for kind, there in _THERE.items() if there()), "cpu")
    elif name in _THERE and not _THERE[name]():
        raise InputError(
            say(
                zh=f"device={name!r}：這台機器或這個 torch 沒有。請改用 device=cpu 或 auto。",
                en=f"device={name!r}: this machine, or this build of torch, has none. Use device=cpu or auto.",
            )
        )
    if name != "cuda":
        return torch.device(name)
    number, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= count:
        raise InputError(
            say(
                zh=f"這台機器有 {count} 個 GPU，不夠第 {number + 1} 個行程用。請減少行程，或用 device=cpu。",
                en=f"This machine has {count} GPUs, none for process {number + 1}. Use fewer processes, or device=cpu.",
            )
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


@contextmanager
def placed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Within the block the model's weights are on `device`; after it, in the machine's memory."""
    model.to(device)
    try:
        yield
    finally:
        model.to("cpu")


def native_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is computed by the hardware, and so faster than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and detect().bf16


def has_compiler(device: torch.device) -> bool:
    """Whether torch.compile has what it writes code for: a C++ compiler, or Triton on a GPU."""
    if device.type == "cuda":
        return bool(has_triton())
    return device.type == "cpu" and detect().compiler


def keep_compiled() -> None:
    """Have torch keep what it compiles in the user's cache folder, so that the next run finds it after a restart too.

    A `TORCHINDUCTOR_CACHE_DIR` of the user's own stands, and where that folder cannot be made, torch's default: the
    folder for temporary files.
    """
    if os.environ.get(_COMPILED) not in (None, default_cache_dir()):  # Importing torch writes its default there.
        return
    folder = cache_folder() / "inductor"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[_COMPILED] = str(folder)


def memory_bytes(device: torch.device) -> int:
    """What the device has, for training to fit in."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return detect().memory_bytes  # Apple's GPUs share it.


def peak_bytes(device: torch.device) -> int:
    """The most that this process has held: of the GPU's memory where it computes there."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return peak_memory_bytes()
