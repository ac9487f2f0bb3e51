"""What is measured of a trained decoder: bits per byte at several lengths, and the speed of decoding.

Shapes in names: B batch, T time, N rows, V vocabulary.
"""

import math
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from wenfang.engine.blocks import BLOCK, BlockPool
from wenfang.engine.runner import Runner
from wenfang.engine.sequence import Sequence
from wenfang.model import Decoder, DecoderConfig
from wenfang.model.memory import Memory
from wenfang.model.parts import RopeConfig, YarnScaling

TOKENS_PER_CALL = 4096
"""Positions measured in one forward pass; at least one row."""
MEASURED_TOKENS = 32_768
"""Positions read for each figure."""


@torch.inference_mode()
def bits_per_byte(model: Decoder, ids: Tensor, length: int, bytes_per_token: float, dtype: torch.dtype) -> float:
    """Bits per byte of text in the second half of rows of `length` tokens.

    The second half, because there every token has at least half a row before it: lengths compare, and a model that
    cannot read further than it learned shows it.

    Args:
        ids: token ids of one long text, as one dimension.
        bytes_per_token: UTF-8 bytes behind each of them, on average.
    """
    rows = min(MEASURED_TOKENS, len(ids) - 1) // length
    ids_NT, targets_NT = (ids[start : start + rows * length].view(rows, length) for start in (0, 1))
    half, nats = length // 2, 0.0
    for ids_BT, targets_BT in zip(
        ids_NT.split(max(1, TOKENS_PER_CALL // length)),
        targets_NT.split(max(1, TOKENS_PER_CALL // length)),
        strict=True,
    ):
        positions_BT = torch.arange(length).expand_as(ids_BT)
        states_BTD = model.hidden(ids_BT, positions_BT, Memory(), dtype)[:, half:]
        logits_NV = model.logits(states_BTD).float().flatten(0, 1)
        nats += float(F.cross_entropy(logits_NV, targets_BT[:, half:].flatten(), reduction="sum"))
    return nats / (rows * (length - half)) / math.log(2) / bytes_per_token


def longer(model: Decoder, length: int, *, yarn: bool) -> Decoder | None:
    """The same weights as a decoder of a longer context; None where the architecture has no such thing.

    Args:
        yarn: scale rotary embeddings by YaRN (Peng et al. 2023) from the context of training to `length`.
    """
    config = model.config
    if config.absolute_positions == "learned":
        return None
    ropes: tuple[RopeConfig | None, ...] = config.ropes
    if yarn:
        if not config.attention_layers or all(rope is None or rope.scaling for rope in ropes):
            return None
        scaling = YarnScaling(factor=length / config.context, original_context=config.context)
        ropes = tuple(rope and rope.model_copy(update={"scaling": rope.scaling or scaling}) for rope in ropes)
    grown = _like(model, config.model_copy(update={"context": length, "ropes": ropes}))
    return grown.eval()


def decode_tokens_per_s(model: Decoder, tokens: int) -> float:
    """Median speed of writing for one sequence through the engine, after a prompt of half the context."""
    prompt = model.config.context // 2
    tokens = min(tokens, model.config.context - prompt)
    pool = BlockPool(-(-model.config.context // BLOCK))
    sequence, times = Sequence([1] * (prompt + tokens)), []
    with torch.inference_mode():
        runner = Runner(model.eval(), pool.available)
        sequence.reserve(pool, prompt + tokens)
        runner.run([sequence], [prompt])
        sequence.computed = prompt
        for _ in range(tokens):
            start = time.perf_counter()
            runner.logits(runner.run([sequence], [1])[0])
            times.append(time.perf_counter() - start)
            sequence.computed += 1
    return 1 / statistics.median(times)


def _like(model: Decoder, config: DecoderConfig) -> Decoder:
    """A decoder of another config over the same weights."""
    with torch.device("meta"):
        other = Decoder(config)
    other.load_state_dict(model.state_dict(), assign=True)
    for (name, target), source in zip(other.named_buffers(), model.buffers(), strict=True):
        if target.is_meta:
            owner, _, attribute = name.rpartition(".")
            setattr(other.get_submodule(owner), attribute, source)
    return other
