"""Any schedule against one request at a time: batching, chunks, prefix reuse, preemption and cancellation."""

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from idle import wait_idle

from wenfang.engine import Completion, Engine, SamplingParams
from wenfang.engine import batch as batch_module
from wenfang.model import Decoder
from wenfang.model.mixers.config import Mamba2Config
from wenfang.model.parts import MlaConfig
from wenfang.tokenizer import Tokenizer

STEM = torch.randint(4, 400, (80,), generator=torch.Generator().manual_seed(6)).tolist()
"""A prefix that prompts share."""

PARAMS = st.sampled_from(
    [
        {"temperature": 0.0},
        {"seed": 1},
        {"seed": 2, "top_p": 0.9, "temperature": 1.4},
        {"seed": 3, "top_k": 20, "dry_multiplier": 0.8, "repetition_penalty": 1.2},
        {"seed": 4, "mirostat_tau": 4.0},
        {"seed": 5, "xtc_probability": 0.5, "frequency_penalty": 0.5},
    ]
)
REQUESTS = st.lists(
    st.fixed_dictionaries(
        {
            "stem": st.sampled_from([0, 5, 16, 31, 48, 80]),
            "rest": st.lists(st.integers(4, 400), min_size=1, max_size=40),
            "params": PARAMS,
            "max_tokens": st.integers(1, 40),
            "leave_after": st.sampled_from([None, None, None, 0, 3]),
        }
    ),
    min_size=1,
    max_size=7,
)


def ask(engine: Engine, request: dict) -> Completion | None:
    """The completion, or None where the caller left before its end."""
    prompt = STEM[: request["stem"]] + request["rest"]
    params = SamplingParams(**request["params"], max_tokens=request["max_tokens"], logprobs=2)
    if request["leave_after"] is None:
        return engine.generate([prompt], params)[0]
    with engine.stream(prompt, params) as stream:
        for _, _delta in zip(range(request["leave_after"]), stream, strict=False):
            pass
    return None


def at_once(engine: Engine, requests: Sequence[dict]) -> list[Completion | None]:
    answers: list[Completion | None] = [None] * len(requests)

    def work(i: int) -> None:
        answers[i] = ask(engine, requests[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def assert_same(answer: Completion, alone: Completion, tolerance: float) -> None:
    """Without a tolerance, equal to the last bit, log-probabilities too."""
    if not tolerance:
        assert answer == alone
    assert (answer.token_ids, answer.finish_reason) == (alone.token_ids, alone.finish_reason)
    for ours, theirs in zip(answer.logprobs, alone.logprobs, strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=tolerance)


MLA = MlaConfig(kv_rank=16, rope_dim=4, value_dim=8)
SMALL_MAMBA = Mamba2Config(heads=2, head_dim=16)
VARIANTS = {
    "fp32": ({}, torch.float32, 0.0),
    "bf16": ({}, torch.bfloat16, 0.0),
    "every limit": ({"windows": (20, None), "attention_softcap": 20.0, "attention_sinks": True}, torch.float32, 0.0),
    # torch has no attention kernel for values narrower than keys; its products differ in the last bits.
    "latent": ({"kv_heads": 4, "mla": MLA, "qk_norm": None}, torch.float32, 1e-4),
    # A chunk's parallel form and a token's recurrent form are the same sum in another order.
    "recurrent": ({"mixers": ("mamba2", "attention"), "mamba2": SMALL_MAMBA}, torch.float32, 1e-3),
}
"""What the model has, its dtype, and how far log-probabilities may differ between schedules."""


def make_variant(model: Decoder, changes: dict, dtype: torch.dtype) -> Decoder:
    torch.manual_seed(3)
    decoder = Decoder(model.config.model_copy(update=changes))
    decoder.initialise()
    with torch.no_grad():
        for weight in decoder.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return decoder.to(dtype)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_schedule_gives_the_texts_of_one_request_at_a_time(
    model: Decoder, tokenizer_folder: Path, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_module, "CHUNK", 24)
    decoder = make_variant(model, *VARIANTS[variant][:2])
    tolerance = VARIANTS[variant][2]
    tokenizer = Tokenizer.load(tokenizer_folder)
    # One context fits, a full batch does not: requests must step back for each other.
    crowded = Engine(decoder, tokenizer, name="crowded", max_batch=4, cache_tokens=128)

    @settings(max_examples=8, phases=[Phase.reuse, Phase.generate])
    @given(requests=REQUESTS)
    def any_schedule(requests: list[dict]) -> None:
        answers = at_once(crowded, requests)
        alone = Engine(decoder, tokenizer, name="alone", max_batch=1, cache_tokens=128)
        for request, answer in zip(requests, answers, strict=True):
            if answer is not None:
                assert_same(answer, ask(alone, request), tolerance)
        alone.close()
        wait_idle(crowded)

    any_schedule()
    long = [
        {"stem": 0, "rest": STEM[i : i + 20], "params": {"seed": i}, "max_tokens": 60, "leave_after": None}
        for i in range(4)
    ]
    for answer, request in zip(at_once(crowded, long), long, strict=True):
        assert_same(answer, ask(crowded, request), tolerance)
    assert crowded._scheduler.preemptions > 0
    assert crowded._thread.is_alive()
    crowded.close()


def test_a_known_prefix_is_not_computed_again(model: Decoder, tokenizer_folder: Path) -> None:
    engine = Engine(model, Tokenizer.load(tokenizer_folder), name="tiny", max_batch=2)
    computed: list[int] = []
    run, read = engine._runner.run, engine._runner.read
    engine._runner.run = lambda sequences, counts: computed.append(sum(counts)) or run(sequences, counts)
    engine._runner.read = lambda sequences, counts: computed.append(sum(counts)) or read(sequences, counts)
    params = SamplingParams(temperature=0, max_tokens=20)
    first = engine.generate([STEM[:50]], params)[0]
    assert sum(computed) == 50 + 19
    computed.clear()
    assert engine.generate([STEM[:50]], params)[0] == first
    assert sum(computed) == 50 - 48 + 19
    computed.clear()
    # The next turn of a conversation: what the model wrote itself is known too.
    engine.generate([STEM[:50] + first.token_ids + [5, 6, 7]], SamplingParams(temperature=0, max_tokens=1))
    assert sum(computed) == 50 + 20 + 3 - 64
    engine.close()


@pytest.mark.parametrize("chunk", [16, 33, 256])
def test_prompt_logprobs_are_the_models(
    model: Decoder, tokenizer_folder: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wenfang.model.memory import Memory

    monkeypatch.setattr(batch_module, "CHUNK", chunk)
    engine = Engine(model, Tokenizer.load(tokenizer_folder), name="tiny", max_batch=2)
    for length in (1, 2, 70):
        params = SamplingParams(temperature=0, max_tokens=2, logprobs=3, prompt_logprobs=True)
        completion = engine.generate([STEM[:length]], params)[0]
        ids = STEM[:length] + completion.token_ids
        with torch.inference_mode():
            log = model(torch.tensor([ids]), torch.arange(len(ids))[None], Memory())[0].log_softmax(-1)
        entries = completion.prompt_logprobs + completion.logprobs
        assert entries[0] is None
        assert [entry.token for entry in entries[1:]] == ids[1:]
        for i, entry in enumerate(entries[1:]):
            assert entry.logprob == pytest.approx(float(log[i, ids[i + 1]]), abs=1e-4)
            assert [p for _, p in entry.top] == pytest.approx(log[i].topk(3).values.tolist(), abs=1e-4)
    engine.close()


def test_a_queued_request_leaves_the_moment_it_is_cancelled(engine: Engine) -> None:
    busy = [engine.stream(STEM[:4], SamplingParams(seed=i)) for i in range(3)]
    queued = engine.stream(STEM[:4], SamplingParams(seed=9))
    assert len(engine._scheduler.waiting) >= 1
    queued.close()
    assert queued._request not in engine._scheduler.waiting
    for stream in busy:
        stream.close()
    wait_idle(engine)
