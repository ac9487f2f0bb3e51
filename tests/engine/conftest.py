"""A small random model behind an engine."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from wenfang.engine import Engine
from wenfang.model import Decoder, DecoderConfig
from wenfang.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def model(tokenizer_folder: Path) -> Decoder:
    torch.manual_seed(3)
    vocab_size = Tokenizer.load(tokenizer_folder).vocab_size
    decoder = Decoder(
        DecoderConfig(vocab_size=vocab_size, dim=32, layers=2, heads=4, kv_heads=2, head_dim=8, hidden=48)
    )
    with torch.no_grad():
        for weight in decoder.parameters():
            if weight.ndim == 2:
                weight.normal_(0.0, 0.3)
    return decoder


@pytest.fixture
def engine(model: Decoder, tokenizer_folder: Path) -> Iterator[Engine]:
    engine = Engine(model, Tokenizer.load(tokenizer_folder), name="tiny", max_batch=3)
    yield engine
    engine.close()
