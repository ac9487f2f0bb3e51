"""How fast a machine computes and reads memory: this one as measured, others as their makers state."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import Field, ValidationError

from wenfang.core.artifact import fingerprint_of, write_atomically
from wenfang.core.config import Config
from wenfang.core.errors import InputError, nearest
from wenfang.core.hardware import cache_folder, detect
from wenfang.core.language import say

HERE = "here"
"""The name of this machine, measured."""


class Device(Config):
    """What a forecast needs to know of a machine."""

    name: str
    memory_gb: float = Field(gt=0, allow_inf_nan=False)
    """Memory for weights, states and activations, in 10⁹ bytes."""
    bf16_tflops: float = Field(gt=0, allow_inf_nan=False)
    """Large dense matrix products in bfloat16, 10¹² floating-point operations per second."""
    fp32_tflops: float = Field(gt=0, allow_inf_nan=False)
    gb_per_s: float = Field(gt=0, allow_inf_nan=False)
    """Memory bandwidth, 10⁹ bytes per second."""
    dispatch_us: float = Field(default=5.0, ge=0, allow_inf_nan=False)
    """Time between the starts of two small operations, 10⁻⁶ seconds."""

    @property
    def memory_bytes(self) -> int:
        """Memory in bytes."""
        return int(self.memory_gb * 1e9)

    def flops(self, dtype: str) -> float:
        """Floating-point operations per second of large matrix products in `float32` or `bfloat16`."""
        return (self.bf16_tflops if dtype == "bfloat16" else self.fp32_tflops) * 1e12


def _preset(name: str, memory_gb: float, bf16_tflops: float, fp32_tflops: float, gb_per_s: float) -> Device:
    return Device(name=name, memory_gb=memory_gb, bf16_tflops=bf16_tflops, fp32_tflops=fp32_tflops, gb_per_s=gb_per_s)


ENOUGH_S = 1.0
"""Of measuring one figure."""
PRESETS = {
    # NVIDIA H100 Tensor Core GPU datasheet (SXM): 1,979 TFLOPS in bf16 with sparsity, half of it dense.
    "h100": _preset("NVIDIA H100 SXM 80 GB", 80, 989, 67, 3350),
    # NVIDIA H200 Tensor Core GPU datasheet (SXM).
    "h200": _preset("NVIDIA H200 SXM 141 GB", 141, 989, 67, 4800),
    # NVIDIA A100 Tensor Core GPU datasheet (SXM, 80 GB).
    "a100": _preset("NVIDIA A100 SXM 80 GB", 80, 312, 19.5, 2039),
    # NVIDIA L4 Tensor Core GPU datasheet: 242 TFLOPS in bf16 with sparsity.
    "l4": _preset("NVIDIA L4 24 GB", 24, 121, 30.3, 300),
    # NVIDIA Ada GPU architecture whitepaper, appendix A: bf16 with fp32 accumulation, dense.
    "rtx4090": _preset("NVIDIA GeForce RTX 4090 24 GB", 24, 165.2, 82.6, 1008),
}
"""Peak figures from the makers' own papers."""


def find_device(name: str) -> Device:
    """This machine (`here`), a preset, or the device described in a YAML file with the fields of `Device`.

    Raises:
        InputError: no such preset or file, or the file does not describe a device.
    """
    if name == HERE:
        return this_device()
    if name in PRESETS:
        return PRESETS[name]
    path = Path(name)
    if path.is_file():
        return _read(path)
    known = [HERE, *PRESETS]
    hint = nearest(name, known)
    raise InputError(
        say(
            zh=f"沒有硬體 {name!r}。可用的有 {'、'.join(known)}，或一個 YAML 檔。{hint}",
            en=f"There is no hardware {name!r}. Known are {', '.join(known)}, or give a YAML file. {hint}".rstrip(),
        )
    )


def this_device() -> Device:
    """This machine, measured the first time (some four seconds) and remembered for this processor and torch."""
    import torch

    facts = detect()
    key = fingerprint_of([facts.processor, facts.cores, facts.memory_bytes, torch.__version__, torch.get_num_threads()])
    path = cache_folder() / f"device-{key}.json"
    try:
        return Device.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        device = measure()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, device.model_dump_json(indent=1).encode())
    except OSError:  # A home that cannot be written to costs as much each time, nothing else.
        return device
    return device


def measure() -> Device:
    """Measure this machine: the best of several runs, so that a busy moment does not count."""
    import torch

    facts = detect()
    with torch.inference_mode():
        return Device(
            name=f"{facts.processor}, {torch.get_num_threads()} threads",
            memory_gb=round(facts.memory_bytes / 1e9, 3),
            bf16_tflops=_matmul_flops("bfloat16") / 1e12,
            fp32_tflops=_matmul_flops("float32") / 1e12,
            gb_per_s=_bytes_per_s() / 1e9,
            dispatch_us=_dispatch_s() * 1e6,
        )


def _matmul_flops(dtype: str) -> float:
    import torch

    rows, inner, columns = 4096, 1024, 2048
    a, b = (torch.randn(*shape).to(getattr(torch, dtype)) for shape in ((rows, inner), (columns, inner)))
    return 2.0 * rows * inner * columns / _best(lambda: torch.nn.functional.linear(a, b), runs=8)


def _bytes_per_s() -> float:
    import torch

    x = torch.ones(2**26)  # 256 MiB: larger than any cache.
    return x.nbytes / _best(x.sum, runs=8)


def _dispatch_s() -> float:
    import torch

    x, operations = torch.ones(64), 2000

    def chain() -> None:
        y = x
        for _ in range(operations):
            y = y * 1.0

    return _best(chain, runs=5) / operations


def _best(work: Callable[[], object], *, runs: int) -> float:
    """Seconds of the fastest run after a first one that is slow; of fewer runs than asked for where they take
    `ENOUGH_S`, such as those of arithmetic that the processor must emulate."""
    times: list[float] = []
    while len(times) < 2 or (len(times) <= runs and sum(times) < ENOUGH_S):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def _read(path: Path) -> Device:
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Device.model_validate_json(json.dumps(values))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, ValidationError) as error:
        fields = ", ".join(Device.model_fields)
        why = error.errors()[0] if isinstance(error, ValidationError) else None
        detail = f"{'.'.join(map(str, why['loc']))}: {why['msg']}" if why else str(error).splitlines()[0]
        raise InputError(
            say(
                zh=f"{str(path)!r} 不是硬體描述（{detail}）。需要 {fields}。",
                en=f"{str(path)!r} does not describe a device ({detail}). It needs {fields}.",
            )
        ) from None
