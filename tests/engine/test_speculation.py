"""Speculative decoding against no speculation: the same texts, the model's own distribution, guesses that fit."""

import itertools
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch

from wenfang.core.errors import InputError
from wenfang.engine import Completion, DraftModel, Engine, LookAhead, Lookup, SamplingParams, Speculation
from wenfang.engine.drafters import AheadDrafter
from wenfang.model import Decoder, DecoderConfig
from wenfang.model.memory import Memory
from wenfang.tokenizer import Tokenizer

STEM = torch.randint(4, 400, (30,), generator=torch.Generator().manual_seed(8)).tolist()
PROMPTS = [STEM, STEM[:17], STEM[:5] * 4, STEM + STEM[:9], [7], STEM * 2]
PARAMS = [
    SamplingParams(temperature=0, max_tokens=40, logprobs=1),
    SamplingParams(seed=5, temperature=0.7, top_p=0.9, max_tokens=40, logprobs=1),
    SamplingParams(seed=1, repetition_penalty=1.2, dry_multiplier=0.8, mirostat_tau=3.0, max_tokens=40, logprobs=1),
]


def random_decoder(seed: int, **changes: object) -> Decoder:
    torch.manual_seed(seed)
    shape = {"dim": 32, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "hidden": 48}
    decoder = Decoder(DecoderConfig(**{**shape, **changes}))
    decoder.initialise()
    with torch.no_grad():
        for weight in decoder.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return decoder


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_folder)


@pytest.fixture(scope="module")
def target(tokenizer: Tokenizer) -> Decoder:
    return random_decoder(3, vocab_size=tokenizer.vocab_size, ahead=2)


@pytest.fixture(scope="module")
def expected(target: Decoder, tokenizer: Tokenizer) -> list[list[Completion]]:
    with closing(Engine(target, tokenizer, name="plain", max_batch=1)) as engine:
        return [engine.generate(PROMPTS, params) for params in PARAMS]


Guesser = Callable[[Decoder, Tokenizer], Speculation]
GUESSERS: dict[str, Guesser] = {
    "lookup": lambda target, tokenizer: Lookup(5),
    "itself": lambda target, tokenizer: DraftModel(target, tokenizer, 3),
    "stranger": lambda target, tokenizer: DraftModel(
        random_decoder(4, vocab_size=tokenizer.vocab_size + 8, layers=1), tokenizer
    ),
    "short-sighted": lambda target, tokenizer: DraftModel(
        random_decoder(5, vocab_size=tokenizer.vocab_size, layers=1, context=40, absolute_positions="learned"),
        tokenizer,
    ),
    "ahead": lambda target, tokenizer: LookAhead(),
}


def bare(completions: list[Completion]) -> list[tuple[object, ...]]:
    return [(c.text, c.token_ids, c.finish_reason, c.logprobs) for c in completions]


@pytest.mark.parametrize("guesser", GUESSERS)
def test_texts_are_those_without_speculation_to_the_last_bit(
    guesser: str, target: Decoder, tokenizer: Tokenizer, expected: list[list[Completion]]
) -> None:
    speculation = GUESSERS[guesser](target, tokenizer)
    # Blocks for the longest text and little more: requests step back for each other, guesses find no room.
    with closing(
        Engine(target, tokenizer, name=guesser, max_batch=4, cache_tokens=160, speculation=speculation)
    ) as engine:
        for params, plain in zip(PARAMS, expected, strict=True):
            completions = engine.generate(PROMPTS, params)
            assert bare(completions) == bare(plain)
            assert sum(completion.drafted for completion in completions) > 0
        assert engine._scheduler.preemptions > 0
        with engine._changed:
            engine._scheduler.check()


@pytest.mark.parametrize("params", PARAMS[:2], ids=["greedy", "sampled"])
def test_a_model_that_guesses_for_itself_is_always_right(
    params: SamplingParams, target: Decoder, tokenizer: Tokenizer
) -> None:
    speculation = DraftModel(target, tokenizer, 3)
    with closing(Engine(target, tokenizer, name="itself", max_batch=4, speculation=speculation)) as engine:
        for completion in engine.generate(PROMPTS + PROMPTS[:2], params):
            whole = len(completion.token_ids) if completion.finish_reason == "length" else 0
            assert completion.drafted - completion.accepted <= 2  # Guesses beyond the end.
            assert not whole or completion.drafted == completion.accepted >= 29  # 1 + 9 · (3 + 1) + (2 + 1).


def test_lookup_copies_what_repeats(target: Decoder, tokenizer: Tokenizer) -> None:
    speculation = Lookup(6)
    with closing(Engine(target, tokenizer, name="lookup", speculation=speculation)) as engine:
        params = SamplingParams(temperature=0, logit_bias={11: 100.0}, max_tokens=60)
        completion = engine.generate([STEM], params)[0]
    assert completion.token_ids == [11] * 60
    assert completion.accepted == completion.drafted > 45


def test_looking_ahead_is_the_models_own(
    target: Decoder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every proposal, after any number of right and wrong ones, equals the layers run over the whole text at once."""
    propose, checked = AheadDrafter.propose, []

    def compare(self: AheadDrafter, requests: list, limits: list[int]) -> list[list[int]]:
        known = [list(request.sequences[0].tokens) for request in requests]
        drafts = propose(self, requests, limits)
        for tokens, draft, limit in zip(known, drafts, limits, strict=True):
            assert len(draft) == limit or len(tokens) == 1  # Whose only state is still to be computed.
            ids_1T = torch.tensor([tokens + draft])
            positions_1T = torch.arange(ids_1T.shape[1])[None]
            x_1TD = target.hidden(ids_1T, positions_1T, Memory(), torch.float32)
            for depth, x in enumerate(target.look_ahead(x_1TD, ids_1T, positions_1T, Memory()), start=1):
                if depth <= len(draft):
                    assert draft[depth - 1] == int(target.logits(x[0, len(tokens) - 2]).argmax())
                    checked.append(depth)
        return drafts

    monkeypatch.setattr(AheadDrafter, "propose", compare)
    with closing(Engine(target, tokenizer, name="ahead", max_batch=4, speculation=LookAhead())) as engine:
        engine.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=20))
    assert checked.count(2) > 60


@pytest.fixture(scope="module")
def few_words() -> tuple[Decoder, Decoder]:
    """A model of a language with six words, and one that is like it but not the same."""
    target, draft = (random_decoder(1, vocab_size=6, layers=1) for _ in range(2))
    with torch.no_grad():
        for weight in draft.parameters():
            weight.add_(0.15 * torch.randn_like(weight))
    return target, draft


def test_the_distribution_is_the_models(few_words: tuple[Decoder, Decoder], tokenizer: Tokenizer) -> None:
    """Chi-square of thousands of texts against the probability of every text of three words."""
    target, draft = few_words
    prompt, V, N, temperature = [5], 6, 1500, 0.8
    texts = list(itertools.product(range(V), repeat=3))
    ids = torch.tensor([[*prompt, *text] for text in texts])
    with torch.inference_mode():
        logits = target(ids, torch.arange(4).expand(len(ids), -1), Memory()) / temperature
    probabilities = logits.log_softmax(-1)[:, :3].gather(2, ids[:, 1:, None]).sum((1, 2)).exp()
    expected: Counter[tuple[int, ...]] = Counter()
    for text, probability in zip(texts, probabilities.tolist(), strict=True):
        end = text.index(tokenizer.end_id) + 1 if tokenizer.end_id in text else 3
        expected[text[:end]] += probability * N
    speculation = DraftModel(draft, tokenizer, 2)
    with closing(Engine(target, tokenizer, name="six", max_batch=32, speculation=speculation)) as engine:
        completions = engine.generate([prompt] * N, SamplingParams(seed=0, temperature=temperature, max_tokens=3))
    counts = Counter(tuple(completion.token_ids) for completion in completions)
    assert set(counts) <= set(expected)
    accepted, drafted = (sum(getattr(c, name) for c in completions) for name in ("accepted", "drafted"))
    assert 0.2 < accepted / drafted < 0.8  # Both outcomes take part.
    assert chi_square_p(torch.tensor([counts[t] for t in expected]), torch.tensor([*expected.values()])) > 0.01


def chi_square_p(counts: torch.Tensor, expected: torch.Tensor) -> float:
    """The chance of a worse fit; cells that expect fewer than five are one cell."""
    rare = expected < 5
    counts = torch.cat((counts[~rare], counts[rare].sum()[None])).double()
    expected = torch.cat((expected[~rare], expected[rare].sum()[None])).double()
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2).double(), statistic / 2))


def test_what_cannot_be_is_refused(target: Decoder, tokenizer: Tokenizer, tokenizer_folder: Path) -> None:
    plain = random_decoder(1, vocab_size=tokenizer.vocab_size)
    recurrent = random_decoder(1, vocab_size=tokenizer.vocab_size, mixers=("mamba2", "attention"))
    renamed = Tokenizer.load(tokenizer_folder)
    renamed._rust.add_tokens(["another"])
    for model, speculation, message in (
        (plain, LookAhead(), "no layers that look ahead"),
        (recurrent, Lookup(), "recurrent layers cannot take back"),
        (plain, DraftModel(recurrent, tokenizer), "recurrent layers cannot take back"),
        (plain, DraftModel(plain, renamed), "another vocabulary"),
    ):
        with pytest.raises(InputError, match=message):
            Engine(model, tokenizer, name="refused", speculation=speculation)
    with pytest.raises(InputError, match="0 tokens cannot be guessed"):
        Lookup(0)
