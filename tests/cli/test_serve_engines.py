"""`wenfang serve --engine`: vLLM as a child, other servers by address. Where vLLM is not installed, our own server and
llama.cpp's stand in for its command."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from openai import OpenAI
from serve.fakes import FakeEngine, live, tiny_adapter

from wenfang.cli import main
from wenfang.engine import Engine, SamplingParams
from wenfang.model.gguf import export_gguf
from wenfang.serve import create_app

POET = Path(__file__).parents[2] / "models" / "poet"
ASK = [{"role": "user", "content": "寫一首五言絕句，題為〈秋夜〉。"}]

OURS = """
import hashlib, json, os, sys
command, folder, *options = sys.argv[1:]
options.remove("--enable-lora")
options.remove("--enable-prompt-tokens-details")
given = dict(zip(options[::2], options[1::2]))
assert command == "serve" and given["--generation-config"] == "vllm" and given["--max-lora-rank"] == "8", sys.argv
hashed = hashlib.sha256(os.environ["VLLM_API_KEY"].encode()).hexdigest()
with open({keys!r}, "w") as out:
    json.dump(dict(keys=[dict(name="front", sha256=hashed)]), out)
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
os.execv(sys.executable, [sys.executable, "-m", "wenfang", "serve", folder, "--host", given["--host"], "--port",
         given["--port"], "--keys", {keys!r}, "--adapter.clerk", given["--lora-modules"].removeprefix("clerk=")])
"""
LLAMA = """
import sys, time, xllamacpp
folder, *options = sys.argv[2:]
options.remove("--enable-prompt-tokens-details")
given = dict(zip(options[::2], options[1::2]))
params = xllamacpp.CommonParams()
params.model.path, params.port, params.n_ctx, params.n_parallel = folder, int(given["--port"]), 512, 2
params.model_alias = {given["--served-model-name"]}
params.n_gpu_layers, params.warmup = 0, False
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
server = xllamacpp.Server(params)
time.sleep(600)
"""


def install(folder: Path, script: str) -> dict[str, str]:
    """An environment whose `vllm` is this script."""
    program = folder / "vllm"
    program.write_text(f"#!{sys.executable}\n{script}")
    program.chmod(0o755)
    path = os.pathsep.join((str(folder), os.environ["PATH"]))
    return {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(sys.path), "WENFANG_LANGUAGE": "en"}


@contextmanager
def serving(*words: str, environment: dict[str, str]) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "wenfang", "serve", *words, "--port", "0"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            ready = next(line for line in server.stderr if "base_url=" in line)
            # Otherwise a server that says much would wait until somebody reads it.
            threading.Thread(target=server.stderr.read, daemon=True).start()
            yield ready.partition("base_url=")[2].split()[0], server
            server.send_signal(signal.SIGTERM)
            server.wait(20)
        finally:
            server.kill()


def children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(line) for line in found.split()]


def expected(params: SamplingParams) -> str:
    engine = Engine.load(POET)
    (answer,) = engine.generate([engine.tokenizer.chat(ASK, add_generation_prompt=True)], params)
    engine.close()
    return answer.text


def test_vllm_writes_behind_our_interface(tmp_path: Path) -> None:
    environment = install(tmp_path, OURS.format(keys=str(tmp_path / "keys.json")))
    clerk = str(tiny_adapter(POET, tmp_path / "clerk"))
    with serving(str(POET), "--engine", "vllm", "--adapter.clerk", clerk, environment=environment) as (url, server):
        (child,) = children(server.pid)
        client = OpenAI(base_url=url, api_key="unused", max_retries=0)
        form = {"type": "regex", "regex": "[春秋]{4}"}
        assert [model.id for model in client.models.list()] == ["poet", "clerk"]
        answer = client.chat.completions.create(model="clerk", messages=ASK, response_format=form, logprobs=True)
        assert set(answer.choices[0].message.content) <= set("春秋")
        assert answer.choices[0].logprobs.content[0].logprob <= 0
        asked = {"model": "poet", "messages": ASK, "seed": 7, "max_tokens": 30, "extra_body": {"top_k": 40}}
        whole = client.chat.completions.create(**asked)
        assert whole.choices[0].message.content == expected(SamplingParams(seed=7, max_tokens=30, top_k=40))
        streamed = client.chat.completions.create(**asked, stream=True)
        assert "".join(c.choices[0].delta.content or "" for c in streamed) == whole.choices[0].message.content
        body = {"model": "poet", "messages": ASK}
        for wrong, status in (({"nonsense": 1}, 400), ({"max_tokens": 0}, 400)):
            answer = httpx.post(f"{url}/chat/completions", json={**body, **wrong})
            assert answer.status_code == status
            assert next(iter(wrong)) in answer.json()["error"]["message"]
        root = url.removesuffix("/v1")
        assert httpx.get(f"{root}/health").status_code == 200
        assert "wenfang_cache_used_ratio{" not in httpx.get(f"{root}/metrics").text
        os.kill(child, signal.SIGKILL)
        assert httpx.post(f"{url}/chat/completions", json=body).json()["error"]["code"] == "engine_failure"
    assert server.returncode == 0


def test_llama_cpp_stands_in_and_is_ended_with_the_server(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed (pip install xllamacpp)")
    path = tmp_path / "poet.gguf"
    export_gguf(POET, path, dtype="f32")
    with serving(str(path), "--engine", "vllm", environment=install(tmp_path, LLAMA)) as (url, server):
        (child,) = children(server.pid)
        client = OpenAI(base_url=url, api_key="unused", max_retries=0)
        answer = client.chat.completions.create(model="poet", messages=ASK, temperature=0, max_tokens=30)
        assert answer.choices[0].message.content == expected(SamplingParams(temperature=0, max_tokens=30))
    assert server.returncode == 0
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_vllm_that_ends_before_it_is_ready_is_reported(tmp_path: Path, capfd, monkeypatch) -> None:
    environment = install(tmp_path, "import sys; sys.exit('CUDA is not there')")
    monkeypatch.setenv("PATH", environment["PATH"])
    assert main(["serve", str(POET), "--engine", "vllm", "--port", "0"]) == 2
    assert "CUDA is not there\nvLLM ended with 1 before it was ready" in capfd.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child")
def test_vllm_does_not_outlive_a_server_that_is_killed(tmp_path: Path) -> None:
    environment = install(tmp_path, "import os, sys, time; print('pid', os.getpid(), file=sys.stderr); time.sleep(60)")
    command = [sys.executable, "-m", "wenfang", "serve", str(POET), "--engine", "vllm", "--port", "0"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        child = int(next(line for line in server.stderr if line.startswith("pid")).split()[1])
        server.kill()
        server.stderr.read()  # To its end: the child has closed it, too.
    for _ in range(50):
        if not Path(f"/proc/{child}").exists():
            return
        time.sleep(0.1)
    pytest.fail("vLLM runs on")


def test_another_server_by_its_address(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with live(create_app(FakeEngine())) as address:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        with serving(str(POET), "--engine", address, environment=environment) as (url, _):
            listed = httpx.get(f"{url}/models").json()["data"]
            assert (listed[0]["id"], listed[0]["context_length"]) == ("poet", 128)
            answer = httpx.post(f"{url}/completions", json={"model": "poet", "prompt": "春", "seed": 1}).json()
            assert answer["choices"][0]["finish_reason"] == "stop"
            assert answer["usage"]["completion_tokens"] == 12


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--engine", "vllm"], "There is no `vllm` here"),
        (["--engine", "vlm"], "There is no engine 'vlm'"),
        (["--engine", "http://127.0.0.1:1"], "does not answer"),
        (["--engine", "vllm", "--quantize", "int8"], "'--quantize' does not go with --engine vllm"),
        (["--engine", "http://127.0.0.1:1", "--adapter.a", "x"], "'--adapter' does not go with"),
        ([str(POET), "--engine", "vllm"], "does not go with"),
        (["--memory-gb", "nan"], "--memory-gb"),
        (["--memory-gb", "-1"], "--memory-gb"),
    ],
)
def test_what_an_engine_cannot_do_is_refused(words: list[str], message: str, capfd, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["serve", str(POET), *words, "--port", "0"]) == 2
    assert message in capfd.readouterr().err
