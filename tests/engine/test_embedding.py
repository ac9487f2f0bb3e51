"""A text as a vector, against the model's own states."""

import pytest
import torch
from idle import wait_idle

from wenfang.core.errors import InputError
from wenfang.model.memory import Memory


def test_an_embedding_is_the_normalised_mean_of_the_final_states(engine, model) -> None:
    prompts = [[3, 4, 5], list(range(2, 40)), [7]]
    for prompt, vector in zip(prompts, engine.embed(prompts), strict=True):
        ids_1T, positions_1T = torch.tensor([prompt]), torch.arange(len(prompt))[None]
        with torch.inference_mode():
            hidden_TD = model.hidden(ids_1T, positions_1T, Memory(), torch.float32)[0]
        mean_D = hidden_TD.double().mean(0)
        torch.testing.assert_close(
            torch.tensor(vector, dtype=torch.float64), mean_D / mean_D.norm(), atol=1e-5, rtol=1e-4
        )
    wait_idle(engine)
    assert engine.occupancy.held_blocks == 0


def test_an_embedding_needs_text_that_fits(engine) -> None:
    assert len(engine.embed([[1] * engine.context])) == 1
    for prompt in ([], [1] * (engine.context + 1)):
        with pytest.raises(InputError):
            engine.embed([prompt])
