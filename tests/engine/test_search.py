"""Searches against transformers where it still has them, else against trying every text and the papers' formulas."""

import itertools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel

from wenfang.core.errors import InputError
from wenfang.engine import BeamParams, ContrastiveParams, Engine
from wenfang.engine.search import BeamSearch
from wenfang.model import Decoder, save_model
from wenfang.tokenizer import Tokenizer

PROMPT = [30, 41, 52, 63, 74]


@pytest.fixture(scope="module")
def judge(model: Decoder, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    folder = tmp_path_factory.mktemp("judge")
    tokenizer = Tokenizer.load(tokenizer_folder)
    save_model(
        model, folder, tokenizer=tokenizer_folder, end_id=tokenizer.end_id, bos_id=tokenizer.bos_id, card="# tiny\n"
    )
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture
def wide(model: Decoder, tokenizer_folder: Path) -> Engine:
    engine = Engine(model, Tokenizer.load(tokenizer_folder), name="tiny", max_batch=8)
    yield engine
    engine.close()


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("early_stopping", [False, True])
def test_beams_are_those_of_transformers(
    wide: Engine, judge: PreTrainedModel, length_penalty: float, early_stopping: bool
) -> None:
    for start in range(3):
        prompt = PROMPT[start:]
        expected = judge.generate(
            torch.tensor([prompt]),
            num_beams=4,
            num_return_sequences=4,
            do_sample=False,
            max_new_tokens=24,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            return_dict_in_generate=True,
            output_scores=True,
        )
        found = wide.search(
            prompt,
            BeamParams(width=4, max_tokens=24, length_penalty=length_penalty, early_stopping=early_stopping),
        )
        assert len(found) == 4
        for completion, ids, score in zip(found, expected.sequences, expected.sequences_scores, strict=True):
            theirs = ids[len(prompt) :].tolist()
            if wide.tokenizer.end_id in theirs:
                theirs = theirs[: theirs.index(wide.tokenizer.end_id) + 1]
            assert completion.token_ids == theirs
            assert completion.score == pytest.approx(float(score), abs=1e-4)


V = 5
END = 0


def table(tokens: tuple[int, ...], end: float = 0.0) -> torch.Tensor:
    """Logits of a made-up model: a different random row after every text; `end` is added to the end token's."""
    seed = sum((t + 1) * (V + 1) ** i for i, t in enumerate(tokens))
    logits = torch.randn(V, generator=torch.Generator().manual_seed(seed)) * 2
    logits[END] += end
    return logits


def run(search: BeamSearch, end: float = 0.0) -> list[tuple[list[int], float]]:
    rows: list[tuple[int, ...]] = [()]
    while children := search.expand(torch.stack([table(row, end) for row in rows]), torch.zeros(len(rows), 1)):
        rows = [(*rows[parent], token) for parent, token in children]
    return [(found.token_ids, found.score) for found in search.found()]


def test_beams_as_wide_as_all_texts_find_the_best_of_all() -> None:
    texts = []
    for length in range(1, 5):
        for text in itertools.product(range(1, V), repeat=length - 1):
            for last in range(V) if length == 4 else [END]:
                tokens = (*text, last)
                logprob = sum(float(table(tokens[:i]).double().log_softmax(0)[t]) for i, t in enumerate(tokens))
                texts.append((list(tokens), logprob / len(tokens) ** 0.7))
    best = sorted(texts, key=lambda pair: -pair[1])[:10]
    found = run(BeamSearch(BeamParams(width=V**4, length_penalty=0.7), END, 4))
    assert [tokens for tokens, _ in found[:10]] == [tokens for tokens, _ in best]
    assert [score for _, score in found[:10]] == pytest.approx([score for _, score in best])


def test_later_groups_avoid_what_earlier_ones_chose_by_the_penalty() -> None:
    """Groups of one beam are greedy searches over log p - penalty · [times chosen before] (Vijayakumar 2018, eq. 5)."""
    penalty, limit = 0.9, 5
    texts: list[list[int]] = [[], [], []]
    for _ in range(limit):
        chosen: list[int] = []
        for text in texts:
            log = table(tuple(text), end=-50.0).double().log_softmax(0)
            text.append(max(range(V), key=lambda t: float(log[t]) - penalty * chosen.count(t)))
            chosen.append(text[-1])
    search = BeamSearch(BeamParams(width=3, groups=3, diversity_penalty=penalty), END, limit)
    assert sorted(tokens for tokens, _ in run(search, end=-50.0)) == sorted(texts)
    assert len({tuple(text) for text in texts}) > 1
    together = run(BeamSearch(BeamParams(width=3, groups=3), END, limit), end=-50.0)
    assert len({tuple(tokens) for tokens, _ in together}) == 1


def contrastive(judge: PreTrainedModel, prompt: list[int], k: int, alpha: float, length: int, end: int) -> list[int]:
    """Su et al. 2022, equation 5, computed from scratch at every step."""
    ids = list(prompt)
    for _ in range(length):
        out = judge(torch.tensor([ids]), output_hidden_states=True)
        past = F.normalize(out.hidden_states[-1][0], dim=-1)
        best = out.logits[0, -1].softmax(-1).topk(k)
        scores = []
        for token, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True):
            state = judge(torch.tensor([[*ids, token]]), output_hidden_states=True).hidden_states[-1][0, -1]
            scores.append((1 - alpha) * probability - alpha * float((past @ F.normalize(state, dim=-1)).max()))
        ids.append(best.indices.tolist()[max(range(k), key=scores.__getitem__)])
        if ids[-1] == end:
            break
    return ids[len(prompt) :]


@torch.inference_mode()
@pytest.mark.parametrize(("k", "alpha"), [(4, 0.6), (5, 0.9), (3, 0.0)])
def test_contrastive_search_is_its_equation(wide: Engine, judge: PreTrainedModel, k: int, alpha: float) -> None:
    prompt = PROMPT * 4
    (found,) = wide.search(prompt, ContrastiveParams(top_k=k, penalty_alpha=alpha, max_tokens=12))
    assert found.token_ids == contrastive(judge, prompt, k, alpha, 12, wide.tokenizer.end_id)


def test_a_search_shares_the_batch_and_steps_back_like_anybody(model: Decoder, tokenizer_folder: Path) -> None:
    import threading

    from wenfang.engine import SamplingParams

    params = BeamParams(width=3, max_tokens=40), ContrastiveParams(top_k=3, max_tokens=40)
    roomy = Engine(model, Tokenizer.load(tokenizer_folder), name="roomy", max_batch=8)
    expected = [roomy.search(PROMPT, p) for p in params]
    roomy.close()
    crowded = Engine(model, Tokenizer.load(tokenizer_folder), name="crowded", max_batch=8, cache_tokens=15 * 16)
    answers: dict[int, list] = {}
    threads = [
        threading.Thread(target=lambda i=i: answers.update({i: crowded.search(PROMPT, params[i])})) for i in (0, 1)
    ]
    for thread in threads:
        thread.start()
    crowded.generate([PROMPT] * 2, SamplingParams(temperature=0, max_tokens=60))
    for thread in threads:
        thread.join()
    for i in (0, 1):
        assert [found.token_ids for found in answers[i]] == [found.token_ids for found in expected[i]]
        # The similarity of hidden states is a product of few rows, so contrastive scores may differ in the last bit.
        assert [found.score for found in answers[i]] == pytest.approx([found.score for found in expected[i]], abs=1e-6)
    assert crowded._scheduler.preemptions > 0
    with crowded._changed:
        crowded._scheduler.check()
    crowded.close()


def test_what_a_search_cannot_have_is_named(engine: Engine) -> None:
    with pytest.raises(InputError, match="needs 4 rows, but there is room for 3"):
        engine.search(PROMPT, BeamParams(width=4))
    for values in ({"width": 0}, {"width": 4, "groups": 3}, {"length_penalty": math.nan}, {"length_penalty": 1e6}):
        with pytest.raises(InputError, match="cannot be"):
            BeamParams(**values)
    with pytest.raises(InputError, match="`diversity_penalty` acts between groups; it needs `groups` above 1"):
        BeamParams(diversity_penalty=0.5)
    with pytest.raises(InputError, match=r"`penalty_alpha` cannot be 1\.5"):
        ContrastiveParams(penalty_alpha=1.5)
