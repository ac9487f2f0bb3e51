"""A real vLLM behind our interface: each request is answered as our own engine answers it.

Both compute in float32 here, so that texts are equal to the last token. Skipped where there is no `vllm`; see
`make test-vllm`.
"""

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from cli.test_serve_engines import children, serving
from openai import BadRequestError, OpenAI
from serve.fakes import live, tiny_adapter

from wenfang.serve import Metrics, ModelPool, Source, create_app_for

PROGRAM = shutil.which("vllm")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="vLLM is not installed (see `make test-vllm`)")

POET = Path(__file__).parents[2] / "models" / "poet"
ASK = [{"role": "user", "content": "寫一首五言絕句，題為〈秋夜〉。"}]
SCHEMA = {
    "type": "object",
    "properties": {"題": {"enum": ["春", "秋"]}, "行": {"type": "array", "items": {"type": "integer"}, "maxItems": 2}},
    "required": ["題", "行"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "write", "parameters": SCHEMA}}
TOLERANCE = 1e-4
"""Of log-probabilities: ten times what the order of additions was seen to make of float32 (4e-6)."""

TOOL_TEMPLATE = """<|bos|>{% for tool in tools or [] %}{{ tool.function.name }} {% endfor %}\
{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\
{% for call in m.tool_calls %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
"""A chat template that shows how calls are written."""


def environment(place: Path) -> dict[str, str]:
    """One whose `vllm` computes in float32 and, on a CPU, takes 1 GB for its cache."""
    program = place / "vllm"
    program.write_text(f'#!/bin/sh\nexec {PROGRAM} "$@" --dtype float32\n')
    program.chmod(0o755)
    path = os.pathsep.join((str(place), os.environ["PATH"]))
    return {"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ, "PATH": path}


@pytest.fixture(scope="module")
def fronts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """Addresses of the same model and adapter: `.vllm`, and `.own`; and vLLM's, `.inner`."""
    place = tmp_path_factory.mktemp("vllm")
    model = place / "poet"
    shutil.copytree(POET, model)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TOOL_TEMPLATE}))
    adapters = {"clerk": tiny_adapter(model, place / "clerk")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(place).items():
            patch.setenv(name, value)
        pools = {
            engine: ModelPool([Source("poet", model, adapters, engine=engine)], memory_bytes=None, meter=Metrics())
            for engine in ("vllm", "wenfang")
        }
        for pool in pools.values():
            pool.load("poet")
        inner = pools["vllm"].loaded()[0].engine._url.removesuffix("/v1")
    theirs, ours = (create_app_for(pool, metrics=Metrics()) for pool in pools.values())
    with live(theirs) as vllm, live(ours) as own:
        yield SimpleNamespace(vllm=vllm, own=own, inner=inner)
    for pool in pools.values():
        pool.close()


TEXTS = {
    "greedy": {"max_tokens": 60},
    "to the end": {"max_tokens": 100, "logit_bias": {"2": -100}},
    "log-probabilities": {"max_tokens": 20, "logprobs": 5},
    "of the prompt, too": {"max_tokens": 5, "logprobs": 2, "echo": True},
    "named by id": {"max_tokens": 5, "logprobs": 0, "echo": True, "return_tokens_as_token_ids": True},
    "echo": {"max_tokens": 5, "echo": True},
    "stopped": {"max_tokens": 60, "stop": ["，", "\n"]},
    "biased": {"max_tokens": 20, "logit_bias": {"300": 5.0, "2": -100.0}},
    "presence": {"max_tokens": 30, "presence_penalty": 1.5},
    "frequency": {"max_tokens": 30, "frequency_penalty": -1.5},
    "repetition": {"max_tokens": 30, "repetition_penalty": 1.4},
    "top-k": {"max_tokens": 30, "temperature": 1.5, "top_k": 1},
    "top-p": {"max_tokens": 30, "temperature": 1.5, "top_p": 1e-9},
    "min-p": {"max_tokens": 30, "temperature": 1.5, "min_p": 1.0},
    "choices": {"max_tokens": 10, "n": 3, "logprobs": 1},
    "prompts": {"max_tokens": 10, "prompt": ["春", "秋夜"]},
    "ids": {"max_tokens": 10, "prompt": [5, 6, 7]},
    "truncated": {"max_tokens": 10, "truncate_prompt_tokens": 3},
    "adapter": {"max_tokens": 30, "model": "clerk", "logprobs": 3},
    "schema": {"structured_outputs": {"json": SCHEMA}},
    "any schema": {"structured_outputs": {"json": True}, "max_tokens": 10},
    "object": {"structured_outputs": {"json_object": True}, "max_tokens": 30},
    "expression": {"structured_outputs": {"regex": "[春秋]{2,4}"}},
    "option": {"structured_outputs": {"choice": ["春天", "秋"]}},
    "grammar": {"structured_outputs": {"grammar": 'start: "春" start | "秋"'}},
}
TALKS = {
    "chat": {"max_tokens": 60},
    "log-probabilities": {"max_tokens": 10, "logprobs": True, "top_logprobs": 20},
    "choices": {"max_tokens": 10, "n": 2},
    "adapter": {"max_tokens": 30, "model": "clerk"},
    "schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "poem", "schema": SCHEMA}}},
    "object": {"response_format": {"type": "json_object"}, "max_tokens": 30},
    "called": {"tools": [TOOL], "tool_choice": "required", "max_tokens": 90},
    "perhaps called": {"tools": [TOOL], "max_tokens": 90},
}


@pytest.mark.parametrize("asked", TEXTS.values(), ids=TEXTS)
def test_a_text_is_continued_as_our_engine_does(fronts: SimpleNamespace, asked: dict[str, Any]) -> None:
    body = {"model": "poet", "prompt": "床前明月光，", "temperature": 0, **asked}
    assert post(fronts.vllm, "/v1/completions", body) == post(fronts.own, "/v1/completions", body)


@pytest.mark.parametrize("asked", TALKS.values(), ids=TALKS)
def test_a_conversation_goes_on_as_with_our_engine(fronts: SimpleNamespace, asked: dict[str, Any]) -> None:
    body = {"model": "poet", "messages": ASK, "temperature": 0, **asked}
    assert post(fronts.vllm, "/v1/chat/completions", body) == post(fronts.own, "/v1/chat/completions", body)


def test_a_stream_is_the_whole_answer_in_pieces(fronts: SimpleNamespace) -> None:
    client = OpenAI(base_url=f"{fronts.vllm}/v1", api_key="unused", max_retries=0)
    asked = {"model": "poet", "messages": ASK, "max_tokens": 30, "seed": 7, "logprobs": True}
    whole = client.chat.completions.create(**asked)
    pieces = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    choices = [choice for piece in pieces for choice in piece.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == whole.choices[0].message.content
    logprobs = [one for choice in choices if choice.logprobs for one in choice.logprobs.content]
    assert [one.token for one in logprobs] == [one.token for one in whole.choices[0].logprobs.content]
    assert len(logprobs) == pieces[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_the_same_seed_is_the_same_text_whatever_else_is_written(fronts: SimpleNamespace) -> None:
    body = {"model": "poet", "prompt": "春", "max_tokens": 30, "seed": 3, "n": 8}
    alone = httpx.post(f"{fronts.vllm}/v1/completions", json=body, timeout=60).json()["choices"]
    assert len({choice["text"] for choice in alone}) == 8
    for choice in alone[::3]:
        one = {**body, "seed": 3 + choice["index"], "n": 1}
        assert httpx.post(f"{fronts.vllm}/v1/completions", json=one, timeout=60).json()["choices"][0] == {
            **choice,
            "index": 0,
        }


REFUSED = {
    "mirostat_tau": {"mirostat_tau": 2.0},
    "typical_p": {"typical_p": 0.5},
    "dry_multiplier": {"dry_multiplier": 1.0},
    "xtc_probability": {"xtc_probability": 0.5},
    "nonsense": {"nonsense": 1},
    "max_tokens": {"max_tokens": 0},
    "logit_bias": {"logit_bias": {"999999": 1}},
    "uniqueItems": {"structured_outputs": {"json": {"type": "array", "uniqueItems": True}}},
    "context is 128": {"prompt": [5] * 128},
}


@pytest.mark.parametrize(("named", "asked"), REFUSED.items(), ids=REFUSED)
def test_what_cannot_be_had_is_refused_by_name(fronts: SimpleNamespace, named: str, asked: dict[str, Any]) -> None:
    answer = httpx.post(f"{fronts.vllm}/v1/completions", json={"model": "poet", "prompt": "春", **asked})
    assert answer.status_code == 400
    assert named in answer.json()["error"]["message"]


def test_what_vllm_itself_refuses_is_a_bad_request(fronts: SimpleNamespace) -> None:
    """A model that writes makes no vectors there."""
    client = OpenAI(base_url=f"{fronts.vllm}/v1", api_key="unused", max_retries=0)
    with pytest.raises(BadRequestError, match="has no '/embeddings'"):
        client.embeddings.create(model="poet", input="春")


def test_hanging_up_cancels_and_the_rest_goes_on(fronts: SimpleNamespace) -> None:
    body = {"model": "poet", "prompt": "春", "max_tokens": 100, "n": 16, "stream": True, "logit_bias": {"2": -100}}
    with httpx.stream("POST", f"{fronts.vllm}/v1/completions", json=body) as answer:
        lines = answer.iter_lines()  # Dropped, it would hang up.
        next(lines)
        assert running(httpx.get(f"{fronts.inner}/metrics").text) > 0
    for _ in range(50):
        if running(httpx.get(f"{fronts.inner}/metrics").text) == 0:
            break
        time.sleep(0.1)
    else:
        pytest.fail("vLLM writes on")
    assert httpx.post(f"{fronts.vllm}/v1/completions", json={**body, "stream": False, "n": 1}).status_code == 200


def running(metrics: str) -> float:
    """Choices that vLLM is writing."""
    return next(
        float(line.split()[-1]) for line in metrics.splitlines() if line.startswith("vllm:num_requests_running{")
    )


def test_a_signal_to_end_lets_the_answer_be_written_and_leaves_nobody(tmp_path: Path) -> None:
    body = {"model": "poet", "prompt": "秋", "max_tokens": 100, "logit_bias": {"2": -100}, "stream": True}
    with serving(str(POET), "--engine", "vllm", environment=environment(tmp_path)) as (url, server):
        family = descendants(server.pid)
        with httpx.stream("POST", f"{url}/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.send_signal(signal.SIGTERM)
            written = list(lines)
        assert written[-2] == "data: [DONE]"
        assert '"finish_reason":"length"' in written[-4]
        server.wait(20)
    assert server.returncode == 0
    assert gone(family)


def test_a_vllm_whose_engine_dies_is_told_and_does_not_outlive_a_killed_server(tmp_path: Path) -> None:
    body = {"model": "poet", "prompt": "秋", "max_tokens": 100, "logit_bias": {"2": -100}, "stream": True, "n": 16}
    with serving(str(POET), "--engine", "vllm", environment=environment(tmp_path)) as (url, server):
        family = descendants(server.pid)
        with httpx.stream("POST", f"{url}/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            os.kill(next(pid for pid in family if "EngineCore" in command(pid)), signal.SIGKILL)
            written = "".join(lines)
        assert '"code":"engine_failure"' in written
        answer = httpx.post(f"{url}/completions", json={"model": "poet", "prompt": "秋"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "engine_failure")
        server.kill()
        assert gone(family)


def descendants(pid: int) -> list[int]:
    """vLLM, its engine, and the engine's workers."""
    return [one for child in children(pid) for one in (child, *descendants(child))]


def command(pid: int) -> str:
    """What a process is called."""
    return Path(f"/proc/{pid}/cmdline").read_text()


def gone(pids: list[int]) -> bool:
    """Whether they all end within some seconds."""
    for _ in range(100):
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.1)
    return False


def post(front: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The choices and, where nothing forces the end, the usage. vLLM counts the end that a form forces as a token."""
    answer = httpx.post(front + path, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    forced = body.keys() & {"structured_outputs", "response_format", "tools"}
    for call in [call for one in told["choices"] for call in one.get("message", {}).get("tool_calls") or []]:
        assert call.pop("id")
    return near({"choices": told["choices"], "usage": None if forced else told["usage"]})


def near(value: Any) -> Any:
    """The same, equal to one whose fractions differ by no more than the tolerance."""
    if isinstance(value, dict):
        return {key: near(item) for key, item in value.items()}
    if isinstance(value, list):
        return [near(item) for item in value]
    return pytest.approx(value, abs=TOLERANCE) if isinstance(value, float) else value
