"""A model behind an address: the same as here from our own server and from llama.cpp's; what goes wrong there."""

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from model.judge_llama_cpp import llama_cpp
from serve.fakes import live, tiny_adapter, tiny_model

from wenfang.core.errors import InputError, WenfangError
from wenfang.engine import Engine, RemoteEngine, SamplingParams
from wenfang.grammar import BrokenPromise, Choice, Grammar, JsonObject, JsonSchema, Lark, Regex, ToolCalls
from wenfang.model.gguf import export_gguf
from wenfang.serve import Allowance, Metrics, ModelPool, Source, create_app, create_app_for, load_keys, new_key

POET = Path(__file__).parents[2] / "models" / "poet"
QUESTION = [{"role": "user", "content": "寫一首五言絕句，題為〈秋夜〉。"}]


@pytest.fixture(scope="module")
def local(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = Engine.load(tiny_model(tmp_path_factory.mktemp("remote") / "tiny", tokenizer_folder))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def reach(
    local: Engine, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., RemoteEngine]]:
    """The same model behind a server with a key."""
    folder = tiny_model(tmp_path_factory.mktemp("copy") / "tiny", tokenizer_folder)
    keys = folder.parent / "keys.json"
    key = new_key(keys, "front", Allowance())
    with live(create_app(local, keys=load_keys(keys))) as url:
        yield lambda **options: RemoteEngine(f"{url}/v1", folder, **{"key": key, **options})


@pytest.fixture
def remote(reach: Callable[..., RemoteEngine]) -> RemoteEngine:
    return reach()


WAYS = [
    SamplingParams(temperature=0, max_tokens=20),
    SamplingParams(seed=3, top_p=0.8, frequency_penalty=1, presence_penalty=0.5),
    SamplingParams(seed=4, max_tokens=30, stop=("春", "山"), logit_bias={5: 3.0, 6: -100.0}),
    SamplingParams(seed=5, top_k=9, min_p=0.01, repetition_penalty=1.4, max_tokens=20),
    SamplingParams(seed=6, mirostat_tau=3.0, dry_multiplier=1.0, max_tokens=20),
    SamplingParams(seed=7, xtc_probability=0.5, typical_p=0.9, max_tokens=20),
]


@pytest.mark.parametrize("params", WAYS, ids=["greedy", "sampled", "stopped", "vLLM's", "mirostat", "rare"])
def test_a_server_writes_what_the_engine_does(local: Engine, remote: RemoteEngine, params: SamplingParams) -> None:
    prompt = remote.tokenizer.chat(QUESTION)
    (expected,) = local.generate([prompt], params)
    deltas = list(remote.stream(prompt, params))
    assert "".join(delta.text for delta in deltas) == expected.text
    assert deltas[-1].finish_reason == expected.finish_reason
    assert deltas[-1].completion_tokens == len(expected.token_ids)
    assert all(delta.finish_reason is None for delta in deltas[:-1])
    assert remote.context == local.context


def test_log_probabilities_are_the_engines(local: Engine, remote: RemoteEngine) -> None:
    prompt = remote.tokenizer.chat(QUESTION)
    for of_prompt in (False, True):
        params = SamplingParams(seed=5, max_tokens=12, logprobs=3, prompt_logprobs=of_prompt)
        (expected,) = local.generate([prompt], params)
        deltas = list(remote.stream(prompt, params))
        assert [one for delta in deltas for one in delta.logprobs] == expected.logprobs
        assert [one for delta in deltas for one in delta.prompt_logprobs] == expected.prompt_logprobs
        assert "".join(delta.text for delta in deltas) == expected.text
        assert deltas[-2].completion_tokens == len(expected.token_ids)


FORMS = [
    JsonSchema.of({"type": "object", "properties": {"題": {"enum": ["春", "秋"]}}, "required": ["題"]}),
    JsonObject(),
    Regex("[春秋]{2,4}"),
    Choice(("春", "秋")),
    Lark('start: "春" start | "秋"'),
]


@pytest.mark.parametrize("grammar", FORMS, ids=lambda grammar: grammar.kind)
def test_a_form_is_kept_there_as_here(local: Engine, remote: RemoteEngine, grammar: Grammar) -> None:
    prompt = remote.tokenizer.chat(QUESTION)
    params = SamplingParams(seed=5, max_tokens=40, grammar=grammar)
    (expected,) = local.generate([prompt], params)
    assert "".join(delta.text for delta in remote.stream(prompt, params)) == expected.text


def test_calls_are_forced_and_adapters_asked_for(tokenizer_folder: Path, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "tiny", tokenizer_folder)
    clerk = tiny_adapter(folder, tmp_path / "clerk")
    pool = ModelPool([Source("tiny", folder, {"clerk": clerk})], memory_bytes=None, meter=Metrics())
    engine = Engine.load(folder)
    engine.load_adapter("clerk", clerk)
    calls = ToolCalls(
        (("f", '{"properties": {"x": {"enum": [1, 2]}}, "required": ["x"], "additionalProperties": false}'),),
        "<call>",
        "</call>",
    )
    with live(create_app_for(pool, metrics=Metrics())) as url:
        remote = RemoteEngine(url, folder)
        assert remote.adapters == ["clerk"]
        for name in (None, "clerk"):
            params = SamplingParams(temperature=0, max_tokens=20)
            (expected,) = engine.generate([[5, 6, 7]], params, adapter=name)
            assert "".join(d.text for d in remote.stream([5, 6, 7], params, adapter=name)) == expected.text
        front = ModelPool([Source("clerk", folder, engine=url)], memory_bytes=None, meter=Metrics())
        with pytest.raises(InputError, match="Two models are called 'clerk'"):
            front.load("clerk")
        with pytest.raises(InputError, match="'adapter'"):
            remote.stream([5], params, adapter="other")
        params = SamplingParams(seed=1, grammar=calls)
        (expected,) = engine.generate([[5, 6]], params)
        assert "".join(d.text for d in remote.stream([5, 6], params)) == expected.text
    engine.close()


def test_llama_cpp_writes_what_the_engine_does(tmp_path: Path) -> None:
    path = tmp_path / "poet.gguf"
    export_gguf(POET, path, dtype="f32")
    engine = Engine.load(POET)
    params = SamplingParams(temperature=0, max_tokens=40)
    with llama_cpp(path, context=256) as llama:
        remote = RemoteEngine(llama.address, path)
        prompt = remote.tokenizer.chat(QUESTION, add_generation_prompt=True)
        assert prompt == engine.tokenizer.chat(QUESTION, add_generation_prompt=True)
        deltas = list(remote.stream(prompt, params))
    (expected,) = engine.generate([prompt], params)
    engine.close()
    assert "".join(delta.text for delta in deltas) == expected.text
    assert deltas[-1].finish_reason == expected.finish_reason == "stop"


@pytest.mark.parametrize(
    "asked",
    [{"top_k": 5}, {"mirostat_tau": 2.0}, {"logprobs": 1}, {"grammar": Regex("a")}, {"repetition_penalty": 1.2}],
    ids=lambda asked: next(iter(asked)),
)
def test_what_a_server_might_drop_in_silence_is_refused(asked: dict[str, object]) -> None:
    with scripted() as (url, _), pytest.raises(InputError, match=f"honour '{next(iter(asked))}'"):
        RemoteEngine(url, POET).stream([1], SamplingParams(**asked))


def test_a_form_is_judged_before_and_its_text_after(remote: RemoteEngine) -> None:
    with pytest.raises(InputError, match="unclosed group"):
        remote.stream([1], SamplingParams(grammar=Regex("(a")))
    with pytest.raises(InputError, match="dry_sequence_breakers"):
        remote.stream([1], SamplingParams(dry_sequence_breakers=("x",)))
    # A server that calls itself vLLM, and is too old for the field.
    with scripted(piece("b"), piece("", "stop"), owner="vllm") as (url, _), pytest.raises(BrokenPromise):
        list(RemoteEngine(url, POET).stream([1], SamplingParams(grammar=Regex("a"))))
    named = {"tokens": ["春"], "token_logprobs": [-1.0], "top_logprobs": [{"春": -1.0}]}
    told = "data: " + json.dumps({"choices": [{"text": "春", "logprobs": named}]})
    with scripted(told, owner="vllm") as (url, _), pytest.raises(WenfangError, match="'春' is no token id"):
        list(RemoteEngine(url, POET).stream([1], SamplingParams(logprobs=1)))


def test_vllm_is_told_to_write_json_in_our_style_and_to_leave_the_prompt_out_of_an_echo() -> None:
    """Left to itself it lets a model pad JSON with line breaks, and spells the special tokens of a prompt."""
    logprob = {"tokens": ["token_id:1", "token_id:5"], "token_logprobs": [None, -1.0]}
    told = "data: " + json.dumps({"choices": [{"text": "春", "logprobs": logprob, "finish_reason": "length"}]})
    asked = list[dict[str, object]]()
    with scripted(told, owner="vllm", asked=asked) as (url, _):
        remote = RemoteEngine(url, POET)
        deltas = list(remote.stream([1], SamplingParams(logprobs=0, prompt_logprobs=True)))
        for grammar in (JsonObject(), JsonSchema("true"), JsonSchema('{"type": "null"}')):
            list(remote.stream([1], SamplingParams(grammar=grammar)))
    assert [asked[0][name] for name in ("echo", "return_token_ids", "return_tokens_as_token_ids")] == [True] * 3
    assert ("".join(delta.text for delta in deltas), deltas[0].prompt_logprobs) == ("春", (None,))
    schemas = [dict(body["structured_outputs"]["json"]) for body in asked[1:]]
    assert {schema.pop("x-guidance")["item_separator"] for schema in schemas} == {", "}
    assert schemas == [{"type": "object"}, {}, {"type": "null"}]


def test_prompts_that_do_not_fit_are_refused_and_vectors_are_the_servers(local: Engine, remote: RemoteEngine) -> None:
    for prompt in ([], [5] * remote.context):
        with pytest.raises(InputError, match=f"context is {remote.context}"):
            remote.stream(prompt, SamplingParams())
    assert len(list(remote.stream([5] * (remote.context - 1), SamplingParams(max_tokens=9)))) <= 2
    for ours, theirs in zip(local.embed([[1], [5, 6]]), remote.embed([[1], [5, 6]]), strict=True):
        assert theirs == pytest.approx(ours, abs=1e-6)
    with (
        scripted("no such thing", status=404) as (url, _),
        pytest.raises(InputError, match="has no '/embeddings': no such thing"),
    ):
        RemoteEngine(url, POET).embed([[1]])


@contextmanager
def scripted(
    *events: str, pause_s: float = 0.0, status: int = 200, owner: str = "me", asked: list[object] | None = None
) -> Iterator[tuple[str, threading.Event]]:
    """A server that lists a model and answers with these events, keeps what it was asked, and tells when its client has
    hung up."""
    left = threading.Event()
    listed = {"data": [{"id": "m", "max_model_len": 99, "owned_by": owner}]}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, json.dumps(listed))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if asked is not None:
                asked.append(body)
            try:
                self._send(status, *events)
                if pause_s:
                    self.connection.settimeout(pause_s)
                    if self.connection.recv(1) == b"":
                        left.set()
            except (ConnectionError, TimeoutError):
                left.set()

        def _send(self, status: int, *lines: str) -> None:
            self.send_response(status)
            self.end_headers()
            for line in lines:
                self.wfile.write(line.encode() + b"\n\n")
                self.wfile.flush()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", left
    server.shutdown()
    server.server_close()


def piece(text: str, reason: str | None = None) -> str:
    return "data: " + json.dumps({"choices": [{"text": text, "finish_reason": reason}]})


def test_hanging_up_cancels_at_once_even_before_the_first_token() -> None:
    for events in ((), (piece("春"),)):
        with scripted(*events, pause_s=10) as (url, left), ThreadPoolExecutor() as pool:
            remote = RemoteEngine(url, POET)
            assert remote.context == 99
            stream = remote.stream([1], SamplingParams())
            reading = pool.submit(list, stream)
            while remote.occupancy.running == 0:
                time.sleep(0.01)
            time.sleep(0.2)
            stream.close()
            assert [delta.text for delta in reading.result(2)] == ["春"] * len(events)
            assert left.wait(2)
            assert remote.occupancy.running == 0


@pytest.mark.parametrize(
    ("events", "status", "error", "message"),
    [
        ((piece("春"),), 200, WenfangError, "finish_reason None"),
        ((piece("春", "abort"),), 200, WenfangError, "finish_reason 'abort'"),
        ((piece("春"), 'data: {"error": {"message": "out of memory"}}'), 200, WenfangError, "out of memory"),
        ((piece("春"), "data: {春"), 200, WenfangError, "no JSON"),
        (('{"error": {"message": "too hot"}}',), 400, InputError, "^too hot$"),
        (("busy",), 503, WenfangError, "503 busy"),
    ],
)
def test_what_goes_wrong_there_is_told_here(
    events: tuple[str, ...], status: int, error: type[Exception], message: str
) -> None:
    with scripted(*events, status=status) as (url, _):
        stream = RemoteEngine(url, POET).stream([1], SamplingParams())
        with pytest.raises(error, match=message) as caught:
            list(stream)
        assert isinstance(caught.value, InputError) == (error is InputError)


def test_an_address_that_is_none_is_named(reach: Callable[..., RemoteEngine]) -> None:
    with pytest.raises(InputError, match="401 The API key is missing"):
        reach(key=None)
    for url, message in (
        ("http://127.0.0.1:1", "does not answer"),
        ("ftp://127.0.0.1", "no http"),
        ("http://127.0.0.1:x", "no http"),
    ):
        with pytest.raises(InputError, match=message):
            RemoteEngine(url, POET)
    with scripted() as (url, _), pytest.raises(InputError, match="lists no model 'n'"):
        RemoteEngine(url, POET, model="n")
