"""Two processes, started by `test_parallel`: steps in parts beside those of the whole. Prints what it tried."""

import copy

import torch
import torch.distributed as dist
from torch import Tensor

from wenfang.model import Decoder, DecoderConfig
from wenfang.model.mixers.config import Rwkv7Config
from wenfang.model.parts import MoeConfig
from wenfang.train.config import OptimizerConfig
from wenfang.train.loss import cross_entropy_sum
from wenfang.train.optimizer import clip_gradients, make_optimizers
from wenfang.train.parallel import Workers, join
from wenfang.train.recompute import recompute_blocks
from wenfang.train.sharding import fill, sharded, whole

BASE = {"vocab_size": 50, "dim": 32, "layers": 3, "heads": 4, "kv_heads": 2, "head_dim": 8, "hidden": 24, "context": 24}
RWKV7 = Rwkv7Config(heads=2, head_dim=16, decay_rank=6, rate_rank=5, value_rank=4, gate_rank=7)
MOE = MoeConfig(experts=4, active=2, hidden=12, balance="loss")
DECODERS = {
    "plain": {},
    "tied": {"tie_embeddings": True},
    "recomputed": {},
    "compiled": {},
    "experts": {"moe": MOE},
    "balanced": {"moe": MOE.model_copy(update={"balance": "bias"})},
    "rwkv7": {"mixers": "rwkv7", "rwkv7": RWKV7, "ropes": (None,)},
    "ahead": {"ahead": 1},
    "bf16": {},
}
OPTIMIZERS = ("muon", "adamw", "lion", "galore")
BF16_ERROR = 0.03
"""Weights are rounded once more, where they are gathered: a norm's, which one process multiplies by in fp32."""
STEP_ERROR = {"muon": 0.15, "adamw": 1e-3, "lion": 0.05, "galore": 1e-3}
"""Of the way that a weight went. Muon's products are in bf16: embeddings that begin 1e-7 larger turn its way by 0.07.
And a sign of nearly nothing may turn."""


def made(**changes: object) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(**(BASE | changes)))
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, 0.1)
    return model


def loss(model: Decoder, ids_BT: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Mean over all rows of the job, two documents in each."""
    documents_BT = (torch.arange(ids_BT.shape[1]) // 12).expand_as(ids_BT)
    positions_BT = (torch.arange(ids_BT.shape[1]) % 12).expand_as(ids_BT)
    total = cross_entropy_sum(model, ids_BT, ids_BT.roll(-1, 1), documents_BT, positions_BT, dtype)
    return total / IDS.numel()


def compare(name: str, workers: Workers) -> None:
    """Gradients of accumulated batches, and what experts were loaded with."""
    dtype = torch.bfloat16 if name == "bf16" else torch.float32
    model = made(**DECODERS[name])
    alone = copy.deepcopy(model)
    if name == "recomputed":
        recompute_blocks(model)
    parts = sharded(model, dtype, compiled=name == "compiled")
    for rows in IDS.split(4):
        # Experts' losses are of a process's own rows, so each half is a batch of its own here too.
        for half in rows.split(2):
            loss(alone, half, dtype).backward()
        loss(parts, rows[2 * workers.rank :][:2], dtype).backward()
    workers.add_gradients(parts)
    for key, weight in alone.named_parameters():
        found = whole(dict(parts.named_parameters())[key].grad)
        error = (found - weight.grad).norm() / weight.grad.norm()
        assert error < (BF16_ERROR if name == "bf16" else 1e-4), (name, key, float(error))
    for (key, load), (_, found) in zip(alone.named_buffers(), parts.named_buffers(), strict=True):
        torch.testing.assert_close(found, load, msg=f"{name} {key}")


def learn(name: str, workers: Workers) -> None:
    """Steps of an optimiser, clipped."""
    start, alone, model = made(), made(), made()
    parts = sharded(model, torch.float32, compiled=False)
    config = OptimizerConfig(name=name, clip=0.01, weight_decay=0.1, layer_decay=0.9, galore_rank=8)
    sides = [(each, make_optimizers(each, config)) for each in (alone, parts)]
    for _ in range(3):
        for each, optimizers in sides:
            rows = IDS if each is alone else IDS[4 * workers.rank :][:4]
            loss(each, rows).backward()
            norm = clip_gradients(each, config.clip)
            assert norm > config.clip
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
    fill(model, parts)
    for (key, weight), found, before in zip(
        alone.named_parameters(), model.parameters(), start.parameters(), strict=True
    ):
        error = float((found - weight).norm() / (weight - before).norm())
        assert error < STEP_ERROR[name], (name, key, error)


if __name__ == "__main__":
    IDS = torch.randint(0, 50, (8, 24), generator=torch.Generator().manual_seed(1))
    together = join()
    for decoder in DECODERS:
        compare(decoder, together)
        if together.first:
            print(decoder, flush=True)
    for optimizer in OPTIMIZERS:
        learn(optimizer, together)
        if together.first:
            print(optimizer, flush=True)
    dist.destroy_process_group()
