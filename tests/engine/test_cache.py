"""How much memory the pool of keys and values takes, by the system's own account."""

import subprocess
import sys

import torch

from wenfang.core.hardware import detect
from wenfang.engine.blocks import BLOCK
from wenfang.engine.cache import MOST_MEMORY, affordable_blocks
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
    """In a process of its own: this one may hold freed memory that new zeros are taken from."""
    command = [sys.executable, "-c", SCRIPT, CONFIG.model_dump_json(), str(PER_TOKEN)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    empty, written = map(int, done.stdout.split())
    assert empty < 32 * 2**20
    assert written > 200 * 2**20


SCRIPT = """
import resource
import sys
from pathlib import Path

from wenfang.engine.blocks import BLOCK
from wenfang.engine.cache import PagedCache
from wenfang.model import Decoder, DecoderConfig


def resident():
    # Bytes of this process in memory now (proc_pid_statm(5)).
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


model = Decoder(DecoderConfig.model_validate_json(sys.argv[1]))
before = resident()
cache = PagedCache(model, [0, 1], 256 * 2**20 // (BLOCK * int(sys.argv[2])), rows=1)  # A quarter of a gigabyte.
empty = resident() - before
pools = (*cache.keys_PGK.values(), *cache.values_PGV.values())
assert not any(pool[-1].any() for pool in pools)
for pool in pools:
    pool.fill_(1.0)
print(empty, resident() - before)
"""
