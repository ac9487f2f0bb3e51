"""A model behind an address: the same text as here, from our own server and from llama.cpp's; what goes wrong there."""

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
from serve.fakes import live, tiny_model

from wenfang.core.errors import InputError, WenfangError
from wenfang.engine import Engine, RemoteEngine, SamplingParams
from wenfang.engine.vllm import HONOURED
from wenfang.grammar import Regex
from wenfang.model.gguf import export_gguf
from wenfang.serve import Allowance, create_app, load_keys, new_key

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
]


@pytest.mark.parametrize("params", WAYS, ids=["greedy", "sampled", "stopped"])
def test_a_server_writes_what_the_engine_does(local: Engine, remote: RemoteEngine, params: SamplingParams) -> None:
    prompt = remote.tokenizer.chat(QUESTION)
    (expected,) = local.generate([prompt], params)
    deltas = list(remote.stream(prompt, params))
    assert "".join(delta.text for delta in deltas) == expected.text
    assert deltas[-1].finish_reason == expected.finish_reason
    assert deltas[-1].completion_tokens == len(expected.token_ids)
    assert all(delta.finish_reason is None for delta in deltas[:-1])
    assert remote.context == local.context


def test_what_vllm_honours_is_passed_on(local: Engine, reach: Callable[..., RemoteEngine]) -> None:
    remote = reach(honoured=HONOURED)
    params = SamplingParams(seed=5, top_k=9, min_p=0.01, repetition_penalty=1.4, max_tokens=20)
    prompt = remote.tokenizer.chat(QUESTION)
    (expected,) = local.generate([prompt], params)
    assert "".join(delta.text for delta in remote.stream(prompt, params)) == expected.text
    assert [delta.finish_reason for delta in remote.stream(prompt, SamplingParams(max_tokens=1))][-1] == "length"


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
def test_what_a_server_might_drop_in_silence_is_refused(remote: RemoteEngine, asked: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"honour '{next(iter(asked))}'"):
        remote.stream([1], SamplingParams(**asked))


def test_prompts_that_do_not_fit_and_vectors_are_refused(remote: RemoteEngine) -> None:
    for prompt in ([], [5] * remote.context):
        with pytest.raises(InputError, match=f"context is {remote.context}"):
            remote.stream(prompt, SamplingParams())
    assert len(list(remote.stream([5] * (remote.context - 1), SamplingParams(max_tokens=9)))) <= 2
    with pytest.raises(InputError, match="no embeddings"):
        remote.embed([[1]])


LISTED = {"data": [{"id": "m", "max_model_len": 99}]}


@contextmanager
def scripted(*events: str, pause_s: float = 0.0, status: int = 200) -> Iterator[tuple[str, threading.Event]]:
    """A server that lists a model and answers with these events, and tells when its client has hung up."""
    left = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, json.dumps(LISTED))

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
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
