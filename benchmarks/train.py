"""Training steps of Wenfang beside its peers: tokens per second, peak memory, and where Wenfang's time goes.

    .venv/bin/python benchmarks/train.py                                  the reference shape, whole documents
    .venv/bin/python benchmarks/train.py --document 60                    short documents packed into rows
    .venv/bin/python benchmarks/train.py --shape poet --rounds 15         the shape of recipes/poet.yaml
    .venv/bin/python benchmarks/train.py --nanogpt path/to/nanoGPT/model.py   with one more peer
    .venv/bin/python benchmarks/train.py --device cuda --shape gpt2 --nanogpt …   GPT-2 of 124M on a GPU

Every contender is the same shape, compiled, in bf16 where the hardware computes it (fp32 otherwise, as in training),
with fp32 weights moved by fused AdamW, in a process of its own; one step of each is timed in turn, and medians are
compared. A step beside which other programs took more than a twentieth of the processor's time is taken again (on
Linux, which tells). Peers read rows of as many tokens without a document mask (which is less work than keeping
documents apart), the same ones each time; Wenfang's come from a mapped file through the loader that training uses, and
how long it waited for them is printed. `litgpt` takes part where it is
installed and the shape has rotary positions.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wenfang.core.allocator import keep_freed_memory
from wenfang.core.device import PRESETS
from wenfang.core.hardware import matmul_flops
from wenfang.model import Decoder, DecoderConfig
from wenfang.train.loader import Loader
from wenfang.train.loss import cross_entropy_sum
from wenfang.train.objective import Batch, Rows
from wenfang.train.packing import batch_rows, pack
from wenfang.train.placement import choose, native_bf16, peak_bytes


def gpt2(**sizes: int) -> DecoderConfig:
    """GPT-2 of these sizes."""
    dim, heads = sizes["dim"], sizes["heads"]
    traits = {"ropes": (None,), "absolute_positions": "learned", "qk_norm": None, "norm": "layer", "norm_bias": True}
    traits |= {"gated": False, "qkv_bias": True, "o_bias": True, "mlp_bias": True, "activation": "gelu_tanh"}
    widths = {"kv_heads": heads, "head_dim": dim // heads, "hidden": 4 * dim}
    return DecoderConfig(**sizes, **widths, **traits, tie_embeddings=True)


SHAPES = {
    "reference": (
        DecoderConfig(vocab_size=8192, dim=384, layers=6, heads=6, kv_heads=6, hidden=1024, context=512, qk_norm=None),
        16,
    ),
    "poet": (DecoderConfig(vocab_size=5120, dim=192, layers=4, heads=3, kv_heads=1, hidden=512, context=128), 32),
    "gpt2": (gpt2(vocab_size=50304, dim=768, layers=12, heads=12, context=1024), 16),
    "tiny": (gpt2(vocab_size=512, dim=64, layers=2, heads=2, context=64), 4),
}
"""Architecture and rows per step; `tiny` is for trying this file."""
DISTURBED = 0.05
"""Share of the processor's time from which on others disturb a step."""
PATIENCE = 8
"""Steps of a contender in a round before the least disturbed one has to do."""
Loss = Callable[[], Tensor]
"""The mean loss of the next rows."""


def arithmetic(device: torch.device) -> torch.dtype:
    """What all contenders compute in."""
    return torch.bfloat16 if native_bf16(device) else torch.float32


class Wenfang:
    """Our step, with its rows read as in training."""

    def __init__(self, shape: DecoderConfig, batch: int, document: int, device: torch.device) -> None:
        keep_freed_memory()  # As `train` does.
        self.model = Decoder(shape)
        self.model.initialise()
        self.model.to(device)
        self._total = torch.compile(cross_entropy_sum, dynamic=False)
        rng = np.random.default_rng(0)
        lengths = [document] * (shape.context // document) + [shape.context % document]  # They fill a row.
        row = [(rng.integers(0, shape.vocab_size, n + 1), np.ones(n + 1, bool)) for n in lengths if n]
        documents = row * (8 * batch)
        self._rows = Rows(pack(documents, shape.context, folder=Path(tempfile.gettempdir())), 1.0)
        self._batch, self._step, self._dtype = batch, 0, arithmetic(device)
        self.loader = Loader(self._batches, device)

    def loss(self) -> Tensor:
        """The mean loss of the next rows."""
        (batch,) = self.loader.take(self._step)
        self._step += 1
        return self._total(self.model, **batch.tensors, dtype=self._dtype) / batch.count

    def _batches(self, step: int) -> list[Batch]:
        return [self._rows.batch(batch_rows(len(self._rows), self._batch, step, seed=0))]


def transformers(shape: DecoderConfig, ids_BT: Tensor, attention: str) -> tuple[nn.Module, Loss]:
    from transformers import AutoConfig, AutoModelForCausalLM

    from wenfang.model.families import family_for

    family = family_for(shape)
    config = AutoConfig.for_model(family.model_type, **family.to_hf(shape), attn_implementation=attention)
    model = AutoModelForCausalLM.from_config(config).train().to(ids_BT.device)
    compiled = torch.compile(model, dynamic=False)
    return model, lambda: compiled(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss


def nanogpt(shape: DecoderConfig, ids_BT: Tensor, path: str) -> tuple[nn.Module, Loss]:
    spec = importlib.util.spec_from_file_location("nanogpt", path)
    assert spec is not None
    assert spec.loader is not None
    source = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt"] = source
    spec.loader.exec_module(source)
    # Its feed-forward has two matrices of four times the width; ours three: the same number of weights at width 384.
    model = source.GPT(
        source.GPTConfig(
            block_size=shape.context,
            vocab_size=shape.vocab_size,
            n_layer=shape.layers,
            n_head=shape.heads,
            n_embd=shape.dim,
            dropout=0.0,
            bias=shape.mlp_bias,
        )
    ).to(ids_BT.device)
    compiled = torch.compile(model, dynamic=False)
    return model, lambda: compiled(ids_BT, ids_BT.roll(-1, 1))[1]


def litgpt(shape: DecoderConfig, ids_BT: Tensor) -> tuple[nn.Module, Loss]:
    from litgpt import GPT, Config

    config = Config(
        name="peer",
        block_size=shape.context,
        vocab_size=shape.vocab_size,
        padded_vocab_size=shape.vocab_size,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_query_groups=shape.kv_heads,
        n_embd=shape.dim,
        head_size=shape.head_dim,
        intermediate_size=shape.hidden,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        bias=False,
        parallel_residual=False,
        rotary_percentage=1.0,
    )
    model = GPT(config).to(ids_BT.device)
    compiled = torch.compile(model, dynamic=False)

    def loss() -> Tensor:
        return F.cross_entropy(compiled(ids_BT).flatten(0, 1), ids_BT.roll(-1, 1).flatten())

    return model, loss


def contend(name: str, arguments: argparse.Namespace) -> None:
    """Compile, then answer each line read with the seconds of one step and the peak memory so far."""
    shape, batch = SHAPES[arguments.shape]
    torch.manual_seed(0)
    device = choose(arguments.device)
    ids_BT = torch.randint(0, shape.vocab_size, (batch, shape.context), device=device)
    makers: dict[str, Callable[[], tuple[nn.Module, Loss]]] = {
        "transformers": lambda: transformers(shape, ids_BT, "sdpa"),
        "transformers, eager attention": lambda: transformers(shape, ids_BT, "eager"),
        "nanoGPT": lambda: nanogpt(shape, ids_BT, arguments.nanogpt),
        "litgpt": lambda: litgpt(shape, ids_BT),
    }
    ours = Wenfang(shape, batch, arguments.document or shape.context, device) if name == "wenfang" else None
    model, loss = (ours.model, ours.loss) if ours else makers[name]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    bf16 = arithmetic(device) == torch.bfloat16

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=ours is None and bf16):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type != "cpu":
            torch.accelerator.synchronize()

    step()
    step()
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "profile":
            print(json.dumps(profile(step)), flush=True)
            continue
        start, before, own = time.perf_counter(), busy_s(), time.process_time()
        step()
        seconds, own = time.perf_counter() - start, time.process_time() - own
        others = (busy_s() - before - own) / seconds / (os.cpu_count() or 1)
        waited = ours.loader.waited_s if ours else 0.0
        print(json.dumps([seconds, peak_bytes(device), waited, others]), flush=True)


def busy_s() -> float:
    """Processor time that all programs together have taken so far; 0 where the system does not tell."""
    try:
        fields = Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
    except OSError:
        return 0.0
    user, nice, system, _idle, _waiting, *interrupts = map(int, fields)
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def profile(step: Callable[[], None]) -> dict[str, float]:
    """Seconds of one step by kind of work."""
    kinds = {"aten::mm": "matrix products", "aten::bmm": "matrix products", "aten::addmm": "matrix products"}
    kinds |= {"wenfang::attention": "attention, forward", "wenfang::attention_backward": "attention, backward"}
    kinds |= {"aten::_fused_adamw_": "optimiser", "Optimizer.step#AdamW.step": "optimiser"}
    with torch.profiler.profile() as record:
        step()
    seconds: dict[str, float] = {}
    for event in record.key_averages():
        kind = kinds.get(event.key, "norms, activations, loss and the rest")
        on_device = getattr(event, "self_device_time_total", 0)
        seconds[kind] = seconds.get(kind, 0.0) + (on_device or event.self_cpu_time_total) / 1e6
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="reference")
    parser.add_argument("--document", type=int, default=0, help="tokens per document; 0 fills the row with one")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), default="cpu")
    parser.add_argument("--nanogpt", default="", help="nanoGPT's model.py")
    parser.add_argument("--contender", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        contend(arguments.contender, arguments)
        return
    rotary = any(SHAPES[arguments.shape][0].ropes) and importlib.util.find_spec("litgpt") is not None
    names = ["wenfang", "transformers"] + ["transformers, eager attention"] * (arguments.device == "cpu")
    names += ["nanoGPT"] * bool(arguments.nanogpt) + ["litgpt"] * rotary
    command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--contender"]
    processes = {}
    for name in names:
        process = subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes[name] = process
        answer(process)
    times: dict[str, list[float]] = {name: [] for name in names}
    memory: dict[str, int] = {}
    waits, repeated = 0.0, 0
    for _ in range(arguments.rounds):
        for name, process in processes.items():
            seconds, memory[name], waited, disturbed = quiet_step(process)
            times[name].append(seconds)
            waits += waited if name == "wenfang" else 0.0
            repeated += disturbed
    parts = json.loads(ask(processes["wenfang"], "profile"))
    for process in processes.values():
        process.communicate()
    show(arguments, times, memory, parts)
    print(f"steps taken again because other programs ran beside them: {repeated}")
    print(f"waiting for data: {waits / sum(times['wenfang']):.2%} of the time of wenfang's steps")


def peak_of(device: torch.device) -> float:
    """What products could reach: by the maker's datasheet for a GPU that is known, as large ones do here otherwise."""
    dtype = arithmetic(device)
    name = torch.cuda.get_device_name().lower() if device.type == "cuda" else device.type
    known = next((preset for key, preset in PRESETS.items() if key in name.replace(" ", "")), None)
    return known.flops(str(dtype).removeprefix("torch.")) if known else matmul_flops(dtype, device.type)


def quiet_step(process: subprocess.Popen[str]) -> tuple[float, int, float, int]:
    """Seconds, peak memory and wait of a step that nothing disturbed, and how many were taken before it; the least
    disturbed of them where there is none."""
    steps = []
    while not steps or (steps[-1][-1] > DISTURBED and len(steps) < PATIENCE):
        steps.append(json.loads(ask(process, "step")))
    seconds, memory, waited, _ = min(steps, key=lambda step: step[-1])
    return seconds, memory, waited, len(steps) - 1


def ask(process: subprocess.Popen[str], what: str) -> str:
    assert process.stdin is not None
    process.stdin.write(what + "\n")
    process.stdin.flush()
    return answer(process)


def answer(process: subprocess.Popen[str]) -> str:
    """The next line a contender prints on its own account."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(("ready", "[", "{")):
            return line
    raise SystemExit(f"a contender ended early with {process.wait()}")


def show(
    arguments: argparse.Namespace, times: dict[str, list[float]], memory: dict[str, int], parts: dict[str, float]
) -> None:
    shape, batch = SHAPES[arguments.shape]
    tokens = batch * shape.context
    flops = shape.training_flops(tokens, shape.context)
    device = choose(arguments.device)
    peak = peak_of(device)
    speed = {name: tokens / statistics.median(seconds) for name, seconds in times.items()}
    document = arguments.document or shape.context
    print(f"{arguments.shape}, {document} tokens a document, {arithmetic(device)}, {arguments.rounds} rounds")
    for name, tokens_per_s in speed.items():
        rate = flops / tokens * tokens_per_s
        print(
            f"{name:32}{tokens_per_s:9,.0f} tokens/s {rate / 1e9:6.0f} GFLOP/s {rate / peak:5.0%} of peak"
            f" {memory[name] / 2**30:6.2f} GiB"
        )
    best = max(value for name, value in speed.items() if name != "wenfang")
    leanest = min(value for name, value in memory.items() if name != "wenfang")
    print(
        f"speed {speed['wenfang'] / best:.2f} × the best peer, memory {memory['wenfang'] / leanest:.2f} × the leanest"
    )
    for kind, seconds in sorted(parts.items(), key=lambda part: -part[1]):
        print(f"  {kind:40}{seconds:7.3f} s {seconds / sum(parts.values()):5.0%}")


if __name__ == "__main__":
    main()
