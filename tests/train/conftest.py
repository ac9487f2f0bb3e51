"""A tiny task without a tokenizer: arithmetic sequences modulo 23."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from wenfang.model import Decoder, DecoderConfig
from wenfang.train.config import TrainConfig
from wenfang.train.objective import NextToken, Rows, Task
from wenfang.train.packing import Document, pack

VOCABULARY, CONTEXT = 23, 32


def sequences(number: int = 40, seed: int = 0) -> list[Document]:
    rng = np.random.default_rng(seed)
    documents = []
    for _ in range(number):
        start, step, length = rng.integers(0, VOCABULARY), rng.integers(1, 5), rng.integers(4, 30)
        ids = [int((start + i * step) % VOCABULARY) for i in range(length)]
        documents.append((ids, [True] * int(length)))
    return documents


@pytest.fixture
def task() -> Task:
    rows, objective = Rows(pack(sequences(), CONTEXT), 1.0), NextToken(torch.float32)
    return Task(rows, rows, objective, measure=objective)


@pytest.fixture
def tiny_model() -> Callable[[], Decoder]:
    """Makes the same fresh model each time."""

    def make() -> Decoder:
        torch.manual_seed(0)
        model = Decoder(
            DecoderConfig(
                vocab_size=VOCABULARY, dim=16, layers=2, heads=2, kv_heads=1, head_dim=8, hidden=24, context=CONTEXT
            )
        )
        model.initialise()
        return model

    return make


@pytest.fixture
def tiny_config() -> Callable[..., TrainConfig]:
    """A config for that task; keywords change it."""

    def make(**changes: object) -> TrainConfig:
        values = {"steps": 60, "batch": 4, "context": CONTEXT, "compile": False, "dtype": "float32", "seed": 1}
        return TrainConfig(**(values | {"validate_every": 20} | changes))

    return make
