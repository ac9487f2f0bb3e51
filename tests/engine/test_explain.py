"""What the strategies are said to have seen, against the engine's own log-probabilities and the rules themselves."""

import math
from pathlib import Path

import pytest

from wenfang.engine import Engine, SamplingParams
from wenfang.engine.explain import STRATEGIES, explain
from wenfang.engine.explain_plot import draw
from wenfang.model import Decoder
from wenfang.tokenizer import Tokenizer

PROMPT = [30, 41, 52, 63]


def test_each_strategys_probabilities_are_those_it_drew_by(
    model: Decoder, tokenizer_folder: Path, tmp_path: Path
) -> None:
    engine = Engine(model, Tokenizer.load(tokenizer_folder), name="tiny", max_batch=8)
    found = {explanation.name: explanation for explanation in explain(engine, model, PROMPT, max_tokens=6)}
    plain = engine.generate([PROMPT], SamplingParams(seed=0, max_tokens=6, logprobs=0))[0]
    engine.close()
    assert list(found) == list(STRATEGIES)
    steps = found["temperature 1"].steps
    assert [step.token for step in steps] == plain.token_ids
    for step, entry in zip(steps, plain.logprobs, strict=True):
        assert math.log(step.probability) == pytest.approx(entry.logprob, abs=1e-3)
        assert step.seen == pytest.approx(step.probability)
    assert {step.choices for step in found["top-k 5"].steps} == {5}
    for step in found["top-k 5"].steps:
        assert step.seen > step.probability
    assert all(step.seen > 0 for explanation in found.values() for step in explanation.steps)
    draw(tmp_path / "out.svg", list(found.values()), engine.tokenizer)
    picture = (tmp_path / "out.svg").read_text(encoding="utf-8")
    assert all(f">{name}<" in picture for name in STRATEGIES)
