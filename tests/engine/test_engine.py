"""The running batch against the model run from scratch, and the life of a request."""

import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from wenfang.core.errors import InputError, WenfangError
from wenfang.engine import Engine, SamplingParams
from wenfang.model import Decoder
from wenfang.model.memory import Memory

POET = Path(__file__).parents[2] / "models" / "poet"


def greedy_without_cache(model: Decoder, prompt: Sequence[int], end_id: int, limit: int) -> list[int]:
    ids = list(prompt)
    for _ in range(limit):
        with torch.inference_mode():
            logits = model(torch.tensor([ids]), torch.arange(len(ids))[None], Memory())
        ids.append(int(logits[0, -1].argmax()))
        if ids[-1] == end_id:
            break
    return ids[len(prompt) :]


def test_batched_decoding_equals_one_forward_per_token(engine: Engine, model: Decoder) -> None:
    prompts = [engine.tokenizer.encode(text) for text in ("白日", "黃河入海流", "欲窮千里目，更上", "春", "明月松間照")]
    completions = engine.generate(prompts, SamplingParams(temperature=0, max_tokens=20))
    for prompt, completion in zip(prompts, completions, strict=True):
        assert completion.token_ids == greedy_without_cache(model, prompt, engine.tokenizer.end_id, 20)


def test_a_program_may_end_while_its_engine_writes() -> None:
    """The engine's thread is gone before Python ends what still runs. Functions at exit run last in, first out."""
    program = """
import atexit, sys, threading
from pathlib import Path
atexit.register(lambda: print([t.name for t in threading.enumerate() if t.name.startswith("engine")]))
from wenfang.engine import Engine, SamplingParams
engine = Engine.load(Path(sys.argv[1]))
stream = engine.stream([5, 6, 7], SamplingParams(max_tokens=200, logit_bias={engine.tokenizer.end_id: -100.0}))
next(iter(stream))
sys.modules["kept"] = stream  # Or it would be closed before.
"""
    done = subprocess.run([sys.executable, "-c", program, str(POET)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_a_seed_gives_the_same_text_and_another_seed_another(engine: Engine) -> None:
    prompt = engine.tokenizer.encode("白日")
    texts = [engine.generate([prompt], SamplingParams(seed=s, max_tokens=30))[0].text for s in (7, 7, 8)]
    assert texts[0] == texts[1] != texts[2]


def test_the_stream_joined_is_the_whole_text(engine: Engine) -> None:
    prompt = engine.tokenizer.encode("白日")
    params = SamplingParams(seed=1, max_tokens=40)
    deltas = list(engine.stream(prompt, params))
    assert "".join(d.text for d in deltas) == engine.generate([prompt], params)[0].text
    assert [d.finish_reason for d in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert deltas[-1].finish_reason in {"stop", "length"}


def test_max_tokens_ends_with_length(engine: Engine) -> None:
    completion = engine.generate([engine.tokenizer.encode("白")], SamplingParams(temperature=0, max_tokens=3))[0]
    assert (len(completion.token_ids), completion.finish_reason) == (3, "length")


def test_stop_strings_end_the_text_before_them(engine: Engine) -> None:
    prompt = engine.tokenizer.encode("白日")
    params = SamplingParams(seed=1, max_tokens=40)
    whole = engine.generate([prompt], params)[0].text
    stop = whole[5:7]
    cut = engine.generate([prompt], SamplingParams(seed=1, max_tokens=40, stop=(stop,)))[0]
    assert cut.text == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"


def test_the_context_bounds_prompt_and_completion(engine: Engine) -> None:
    full = [5] * (engine.context - 2)
    assert len(engine.generate([full], SamplingParams(temperature=0))[0].token_ids) <= 2
    for prompt in ([], [5] * engine.context):
        with pytest.raises(InputError, match=f"context is {engine.context}"):
            engine.stream(prompt, SamplingParams())


def test_closing_a_stream_frees_its_place(engine: Engine) -> None:
    prompt = engine.tokenizer.encode("白日")
    for _ in range(10):  # More than the engine has places: leaks would starve the last request.
        stream = engine.stream(prompt, SamplingParams(seed=1))
        next(stream)
        stream.close()
    assert engine.generate([prompt], SamplingParams(temperature=0, max_tokens=2))[0].text is not None


def test_concurrent_streams_each_get_their_own_text(engine: Engine) -> None:
    prompts = [engine.tokenizer.encode(text) for text in ("白日", "黃河", "春風", "明月", "秋夜")]
    params = SamplingParams(temperature=0, max_tokens=15)
    alone = [engine.generate([prompt], params)[0].text for prompt in prompts]
    together: dict[int, str] = {}

    def work(i: int) -> None:
        together[i] = "".join(delta.text for delta in engine.stream(prompts[i], params))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[i] for i in range(len(prompts))] == alone


def test_a_closed_engine_refuses_and_fails_its_requests(engine: Engine) -> None:
    stream = engine.stream(engine.tokenizer.encode("白"), SamplingParams(seed=1))
    engine.close()
    with pytest.raises(WenfangError, match="closed"):
        list(stream)
    with pytest.raises(WenfangError, match="closed"):
        engine.stream([5], SamplingParams())


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), ValueError("no such token"), KeyError("x")])
def test_a_failed_step_ends_its_requests_and_the_engine_goes_on(
    engine: Engine, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(turns: object) -> None:
        raise error

    prompt, params = engine.tokenizer.encode("白日"), SamplingParams(temperature=0, max_tokens=4)
    expected = engine.generate([prompt], params)
    with monkeypatch.context() as broken:
        broken.setattr(engine._batch, "_choose", fail)
        with pytest.raises(WenfangError, match=f"Generation failed: {type(error).__name__}: "):
            engine.generate([prompt] * 5, params)
    assert engine.generate([prompt], params) == expected
    with engine._changed:
        engine._scheduler.check()


def test_an_idle_engine_does_not_burn_the_processor(engine: Engine) -> None:
    engine.generate([engine.tokenizer.encode("白")], SamplingParams(max_tokens=2))
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.15
