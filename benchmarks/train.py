"""One training step of the poet's decoder beside the same shape in `transformers`, both compiled, in bf16.

    .venv/bin/python benchmarks/train.py

Prints tokens per second of each, interleaved in one process, and the ratio of the medians. The peer is Qwen3 with fp32
weights under autocast, rows without a document mask (less work than ours, which keeps packed documents apart).
Forward and backward only; optimisers differ by choice, not by speed of code.
"""

import statistics
import time
from collections.abc import Callable

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from wenfang.model import Decoder, DecoderConfig
from wenfang.model.families import qwen3
from wenfang.train.loss import cross_entropy_sum

SHAPE = DecoderConfig(
    vocab_size=5120, dim=192, layers=4, heads=3, kv_heads=1, head_dim=64, hidden=512, context=128
)  # recipes/poet.yaml
BATCH = 32
ROUNDS = 15


def ours() -> Callable[[torch.Tensor], torch.Tensor]:
    """Loss of Wenfang's decoder on rows of two documents each."""
    model = Decoder(SHAPE)
    model.initialise()
    loss = torch.compile(cross_entropy_sum, dynamic=False)
    half = SHAPE.context // 2
    documents_BT = (torch.arange(SHAPE.context) // half).expand(BATCH, -1).contiguous()
    positions_BT = (torch.arange(SHAPE.context) % half).expand(BATCH, -1).contiguous()

    def step(ids_BT: torch.Tensor) -> torch.Tensor:
        targets_BT = ids_BT.roll(-1, 1)
        return loss(model, ids_BT, targets_BT, documents_BT, positions_BT, torch.bfloat16) / ids_BT.numel()

    return step


def peer() -> Callable[[torch.Tensor], torch.Tensor]:
    """Loss of the same shape in `transformers`."""
    model = Qwen3ForCausalLM(Qwen3Config(**qwen3.to_hf(SHAPE))).train()
    compiled = torch.compile(model, dynamic=False)

    def step(ids_BT: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return compiled(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss

    return step


def main() -> None:
    torch.manual_seed(0)
    ids_BT = torch.randint(0, SHAPE.vocab_size, (BATCH, SHAPE.context))
    steps = {"wenfang": ours(), "transformers": peer()}
    for step in steps.values():  # Compile.
        step(ids_BT).backward()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            start = time.perf_counter()
            step(ids_BT).backward()
            times[name].append(time.perf_counter() - start)
    speed = {name: ids_BT.numel() / statistics.median(seconds) for name, seconds in times.items()}
    flops = SHAPE.training_flops(ids_BT.numel(), SHAPE.context)
    for name, tokens_per_s in speed.items():
        gflops = flops / ids_BT.numel() * tokens_per_s / 1e9
        print(f"{name:14}{tokens_per_s:10,.0f} tokens/s {gflops:8.0f} GFLOP/s")
    print(f"ratio {speed['wenfang'] / speed['transformers']:.2f}")


if __name__ == "__main__":
    main()
