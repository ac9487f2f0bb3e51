"""How much memory the pool of keys and values takes, by the system's own account."""

import resource
from pathlib import Path

import torch

from wenfang.core.hardware import detect
from wenfang.engine.blocks import BLOCK
from wenfang.engine.cache import MOST_MEMORY, PagedCache, affordable_blocks
from wenfang.model import Decoder, DecoderConfig

CONFIG = DecoderConfig(vocab_size=64, dim=32, layers=2, heads=2, kv_heads=2, head_dim=512, hidden=32, context=64)
PER_TOKEN = 2 * 2 * (512 + 512) * 4
"""Bytes: layers, heads, keys and values in fp32."""


def test_as_many_blocks_as_wanted_or_as_fit_into_its_share_of_memory() -> None:
    with torch.device("meta"):
        model = Decoder(CONFIG)
    assert affordable_blocks(model, 3) == 3
    most = affordable_blocks(model, 1 << 40)
    assert most == int(MOST_MEMORY * detect().memory_bytes) // (BLOCK * PER_TOKEN)


def test_memory_is_taken_as_it_is_written() -> None:
    blocks = 256 * 2**20 // (BLOCK * PER_TOKEN)  # A quarter of a gigabyte.
    before = _resident()
    cache = PagedCache(Decoder(CONFIG), [0, 1], blocks, rows=1)
    assert _resident() - before < 32 * 2**20
    assert not any(pool[-1].any() for pool in (*cache.keys_PGK.values(), *cache.values_PGV.values()))
    for pool in (*cache.keys_PGK.values(), *cache.values_PGV.values()):
        pool.fill_(1.0)
    assert _resident() - before > 200 * 2**20


def _resident() -> int:
    """Bytes of this process in memory now (proc_pid_statm(5))."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
