"""The decoder beside its peers, forward and training step, side by side in one run, as ratios.

    .venv/bin/python benchmarks/model.py                              uncompiled, bf16, the reference shape
    .venv/bin/python benchmarks/model.py --compile                    through torch.compile
    .venv/bin/python benchmarks/model.py --dtype float32 --shape poet

The contenders: this decoder; `transformers` with weights of the same shapes (`sdpa` attention); a decoder as nanoGPT
writes it, one screen of plain modules, with as many weights. Each is a process of its own, as in
`benchmarks/train.py`; one call of each is timed in turn, and medians are compared. Forward is inference on weights in
the dtype itself; a training step keeps fp32 weights, peers under autocast, and moves them by fused AdamW.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from train import SHAPES, answer, ask

from wenfang.core.allocator import keep_freed_memory
from wenfang.core.hardware import peak_memory_bytes
from wenfang.model import Decoder, DecoderConfig
from wenfang.model.memory import Memory
from wenfang.train.loss import cross_entropy_sum

NAMES = ("wenfang", "transformers", "nanoGPT-style")
WORK = ("forward", "step")
Logits = Callable[[Tensor], Tensor]
"""Token ids [B, T] → logits [B, T, V]."""


class Plain(nn.Module):
    """GPT-2's block as nanoGPT writes it: one projection for queries, keys and values, fused attention, GELU."""

    def __init__(self, shape: DecoderConfig) -> None:
        super().__init__()
        self.heads, dim = shape.heads, shape.dim
        self.tokens, self.positions = nn.Embedding(shape.vocab_size, dim), nn.Embedding(shape.context, dim)
        # Two matrices of half again the width have as many weights as SwiGLU's three.
        hidden = shape.hidden * 3 // 2
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(dim, bias=False),
                    "qkv": nn.Linear(dim, 3 * dim, bias=False),
                    "out": nn.Linear(dim, dim, bias=False),
                    "norm2": nn.LayerNorm(dim, bias=False),
                    "up": nn.Linear(dim, hidden, bias=False),
                    "down": nn.Linear(hidden, dim, bias=False),
                }
            )
            for _ in range(shape.layers)
        )
        self.norm, self.head = nn.LayerNorm(dim, bias=False), nn.Linear(dim, shape.vocab_size, bias=False)

    def forward(self, ids_BT: Tensor) -> Tensor:
        x_BTD = self.tokens(ids_BT) + self.positions.weight[: ids_BT.shape[1]]
        for block in self.blocks:
            q, k, v = block["qkv"](block["norm1"](x_BTD)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            context = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x_BTD = x_BTD + block["out"](context.transpose(1, 2).flatten(2))
            x_BTD = x_BTD + block["down"](F.gelu(block["up"](block["norm2"](x_BTD))))
        return self.head(self.norm(x_BTD))


def make(name: str, shape: DecoderConfig) -> nn.Module:
    """A contender's model with fresh fp32 weights."""
    torch.manual_seed(0)
    if name == "wenfang":
        model = Decoder(shape)
        model.initialise()
        return model
    if name == "transformers":
        from transformers import AutoConfig, AutoModelForCausalLM

        from wenfang.model.families import family_for

        family = family_for(shape)
        config = AutoConfig.for_model(family.model_type, **family.to_hf(shape), attn_implementation="sdpa")
        return AutoModelForCausalLM.from_config(config)
    return Plain(shape)


def forward_of(name: str, model: nn.Module) -> Logits:
    """How a contender makes logits."""
    if name == "wenfang":
        return lambda ids_BT: model(ids_BT, torch.arange(ids_BT.shape[1]).expand_as(ids_BT), Memory())
    if name == "transformers":
        return lambda ids_BT: model(input_ids=ids_BT, use_cache=False).logits
    return model


def loss_of(name: str, model: nn.Module, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """How a contender makes its mean loss."""
    if name == "wenfang":

        def ours(ids_BT: Tensor) -> Tensor:
            positions_BT = torch.arange(ids_BT.shape[1]).expand_as(ids_BT)
            whole_BT, targets_BT = torch.zeros_like(ids_BT), ids_BT.roll(-1, 1)
            return cross_entropy_sum(model, ids_BT, targets_BT, whole_BT, positions_BT, dtype) / ids_BT.numel()

        return ours
    logits = forward_of(name, model)

    def theirs(ids_BT: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits_BTV = logits(ids_BT)
        return F.cross_entropy(logits_BTV.float().flatten(0, 1), ids_BT.roll(-1, 1).flatten())

    return theirs


def contend(name: str, arguments: argparse.Namespace) -> None:
    """Warm up, then answer each line read, `forward` or `step`, with its seconds and the peak memory so far."""
    shape, batch = SHAPES[arguments.shape]
    dtype = getattr(torch, arguments.dtype)
    if name == "wenfang":
        keep_freed_memory()  # As `train` does.
    compiled = (lambda f: torch.compile(f, dynamic=False)) if arguments.compile else (lambda f: f)
    trained, frozen = make(name, shape).train(), make(name, shape).eval().to(dtype)
    loss, logits = compiled(loss_of(name, trained, dtype)), compiled(forward_of(name, frozen))
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-4, fused=True)
    ids_BT = torch.randint(0, shape.vocab_size, (batch, shape.context))

    def step() -> None:
        loss(ids_BT).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    @torch.inference_mode()
    def forward() -> None:
        logits(ids_BT)

    work = {"forward": forward, "step": step}
    for kind in (*WORK, *WORK):
        work[kind]()
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        work[line.strip()]()
        print(json.dumps([time.perf_counter() - start, peak_memory_bytes()]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="reference")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contender", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        contend(arguments.contender, arguments)
        return
    command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--contender"]
    processes = {}
    for name in NAMES:
        process = subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes[name] = process
        answer(process)
    times: dict[tuple[str, str], list[float]] = {(name, kind): [] for name in NAMES for kind in WORK}
    memory: dict[str, int] = {}
    for _ in range(arguments.rounds):
        for kind in WORK:
            for name, process in processes.items():
                seconds, memory[name] = json.loads(ask(process, kind))
                times[name, kind].append(seconds)
    for process in processes.values():
        process.communicate()
    show(arguments, times, memory)


def show(arguments: argparse.Namespace, times: dict[tuple[str, str], list[float]], memory: dict[str, int]) -> None:
    shape, batch = SHAPES[arguments.shape]
    tokens = batch * shape.context
    way = "compiled" if arguments.compile else "eager"
    print(f"{arguments.shape}, {arguments.dtype}, {way}, {arguments.rounds} rounds")
    for kind in WORK:
        speed = {name: tokens / statistics.median(times[name, kind]) for name in NAMES}
        for name, tokens_per_s in speed.items():
            ratio, gib = speed["wenfang"] / tokens_per_s, memory[name] / 2**30
            print(f"{kind:9}{name:16}{tokens_per_s:9,.0f} tokens/s   wenfang {ratio:.2f} ×  {gib:5.2f} GiB")


if __name__ == "__main__":
    main()
