"""Likelihood against `transformers` on the same folder."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from wenfang.evaluate.likelihood import Pair, reply_nats
from wenfang.model import load_model


@pytest.fixture
def pairs() -> list[Pair]:
    """Prompts and replies of different lengths, the shortest of each a single token."""
    torch.manual_seed(0)
    lengths = [(12, 30), (1, 1), (40, 5), (1, 60), (25, 1)]
    return [tuple(torch.randint(0, 300, (n,)).tolist() for n in pair) for pair in lengths]


def test_each_reply_costs_what_transformers_says(model_folder: Path, pairs: list[Pair]) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    expected = []
    for prompt, reply in pairs:
        ids = torch.tensor([[*prompt, *reply]])
        labels = torch.tensor([[-100] * len(prompt) + reply])
        with torch.no_grad():  # Their loss is the mean over the labels that count.
            expected.append(float(theirs(ids, labels=labels).loss) * len(reply))
    # fp32 sums of up to 60 terms of about 6 nats, in another order.
    assert reply_nats(load_model(model_folder), pairs) == pytest.approx(expected, rel=1e-4)


def test_neighbours_in_a_batch_change_nothing(model_folder: Path, pairs: list[Pair]) -> None:
    model = load_model(model_folder)
    alone = [reply_nats(model, [pair])[0] for pair in pairs]
    assert reply_nats(model, pairs) == pytest.approx(alone, rel=1e-5)


def test_a_model_that_knows_nothing_pays_the_logarithm_of_its_vocabulary(model_folder: Path) -> None:
    model = load_model(model_folder)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    (nats,) = reply_nats(model, [([1, 2, 3], [4, 5])])
    assert nats == pytest.approx(2 * torch.tensor(float(model.config.vocab_size)).log().item())
