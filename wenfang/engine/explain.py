"""What each decoding strategy does on one prompt: the text it writes and the probabilities it saw.

Shapes: T tokens written, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wenfang.engine.engine import Engine, SearchParams
from wenfang.engine.params import SamplingParams
from wenfang.engine.sampling import Sampler, observe, penalise, warp
from wenfang.engine.search import BeamParams, ContrastiveParams
from wenfang.model import Decoder
from wenfang.model.memory import Memory

STRATEGIES: dict[str, SamplingParams | SearchParams] = {
    "greedy": SamplingParams(temperature=0),
    "temperature 1": SamplingParams(),
    "temperature 0.5": SamplingParams(temperature=0.5),
    "temperature 1.5": SamplingParams(temperature=1.5),
    "top-k 5": SamplingParams(top_k=5),
    "top-p 0.9": SamplingParams(top_p=0.9),
    "min-p 0.1": SamplingParams(min_p=0.1),
    "typical 0.9": SamplingParams(typical_p=0.9),
    "top-n-sigma 1": SamplingParams(top_n_sigma=1),
    "repetition 1.3, greedy": SamplingParams(temperature=0, repetition_penalty=1.3),
    "presence 2, greedy": SamplingParams(temperature=0, presence_penalty=2),
    "frequency 2, greedy": SamplingParams(temperature=0, frequency_penalty=2),
    "DRY 2, greedy": SamplingParams(temperature=0, dry_multiplier=2, dry_allowed_length=1),
    "XTC 0.5": SamplingParams(xtc_probability=0.5, xtc_threshold=0.1),
    "mirostat 3 bits": SamplingParams(mirostat_tau=3),
    "4 beams": BeamParams(width=4),
    "2 diverse groups": BeamParams(width=4, groups=2, diversity_penalty=1),
    "contrastive": ContrastiveParams(),
}


@dataclass(frozen=True)
class Step:
    """One token that a strategy chose."""

    token: int
    probability: float
    """Under the bare model."""
    seen: float
    """Under the strategy: after penalties, temperature and truncation. A search sees the bare model."""
    choices: int
    """Tokens that could have been chosen; at temperature 0 only the likeliest."""


@dataclass(frozen=True)
class Explanation:
    """What one strategy did."""

    name: str
    text: str
    steps: list[Step]
    first_V: Tensor
    """Its probabilities for the first token."""


def explain(
    engine: Engine, model: Decoder, prompt: Sequence[int], *, max_tokens: int = 20, seed: int = 0
) -> list[Explanation]:
    """Let every strategy continue the prompt, the random ones with the same seed, and look at its choices again.

    Args:
        engine: with `model`.
        model: whose outputs for each text are computed once more, all at once.

    Raises:
        InputError: the prompt is empty or leaves no room.
    """
    explanations = []
    for name, strategy in STRATEGIES.items():
        if isinstance(strategy, SamplingParams):
            params = replace(strategy, seed=seed, max_tokens=max_tokens)
            completion = engine.generate([prompt], params)[0]
        else:
            params = SamplingParams(max_tokens=max_tokens)
            completion = engine.search(prompt, replace(strategy, max_tokens=max_tokens))[0]
        logits_TV = _logits(model, prompt, completion.token_ids)
        steps, first_V = _retrace(logits_TV, Sampler(params, prompt), completion.token_ids)
        explanations.append(Explanation(name, completion.text, steps, first_V))
    return explanations


def _logits(model: Decoder, prompt: Sequence[int], tokens: Sequence[int]) -> Tensor:
    """The output that each token was chosen from, in fp32."""
    ids_1T = torch.tensor([[*prompt, *tokens]])
    with torch.inference_mode():
        logits_1TV: Tensor = model(ids_1T, torch.arange(ids_1T.shape[1])[None], Memory())
    return logits_1TV[0, len(prompt) - 1 : -1].float()


def _retrace(logits_TV: Tensor, sampler: Sampler, tokens: Sequence[int]) -> tuple[list[Step], Tensor]:
    """The sampler's probabilities at each step, and all of them at the first."""
    steps: list[Step] = []
    first_V = torch.empty(0)
    for logits_V, token in zip(logits_TV, tokens, strict=True):
        scores_V = warp(penalise(logits_V[None], [sampler]), [sampler])[0]
        seen_V = scores_V.softmax(-1)
        first_V = first_V if steps else seen_V
        bare = float(logits_V.softmax(-1)[token])
        choices = int((seen_V > 0).sum()) if sampler.params.temperature else 1
        steps.append(Step(token, bare, float(seen_V[token]), choices))
        observe(logits_V, token, sampler)
        sampler.written.append(token)
    return steps, first_V
