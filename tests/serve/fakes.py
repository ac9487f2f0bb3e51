"""A scripted engine with the real one's interface, and live servers for tests of `serve` and `studio`."""

import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import torch
from safetensors.torch import save_file

from wenfang.core.errors import InputError
from wenfang.engine import Delta, Occupancy, SamplingParams
from wenfang.model import Decoder, DecoderConfig, save_model
from wenfang.serve import claim_port, url_of
from wenfang.serve.listen import configure
from wenfang.tokenizer import Tokenizer

CHARACTERS = "春江潮水連海平海上明月共潮生灩灩隨波千萬里何處無"


class FakeTokenizer:
    """A token for each character."""

    tokens = ("x",)

    def encode(self, text: str) -> list[int]:
        return [ord(c) for c in text]

    begin = encode

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def chat(
        self, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool, tools: object = None
    ) -> list[int]:
        for i, message in enumerate(messages):
            if message["role"] not in ("system", "user", "assistant"):
                raise InputError(f"`messages[{i}].role` is {message['role']!r}")
        return [ord(c) for m in messages for c in m["content"]]


class FakeStream:
    """The deltas of a generator, with a `close` for any thread that the generator hears at its next one."""

    def __init__(self, deltas: Iterator[Delta]) -> None:
        self.deltas, self.closing = deltas, False

    def __iter__(self) -> Iterator[Delta]:
        for delta in self.deltas:
            if self.closing:
                break
            yield delta
        self.deltas.close()

    def each(self, take: Callable[[Delta], None]) -> None:
        for delta in self:
            take(delta)

    def close(self) -> None:
        self.closing = True


class FakeEngine:
    """Writes `tokens` characters drawn with the seed, one each `pause_s`; 錯 in the prompt makes it fail."""

    name = "fake-poet"
    context = 200
    vocab_size = 0x110000
    occupancy = Occupancy(1, 2, 3, 12)

    def __init__(self) -> None:
        self.tokenizer = FakeTokenizer()
        self.tokens = 12
        self.pause_s = 0.0
        self.closed = threading.Event()
        self.running = self.most_running = 0
        self.lock = threading.Lock()

    def stream(self, prompt: list[int], params: SamplingParams) -> FakeStream:
        return FakeStream(self.write(prompt, params))

    def embed(self, prompts: Sequence[list[int]]) -> list[list[float]]:
        return [[1.0 / len(prompt), 0.5] for prompt in prompts]

    def write(self, prompt: list[int], params: SamplingParams) -> Iterator[Delta]:
        text = "".join(map(chr, prompt))
        if "早錯" in text:
            raise RuntimeError("out of memory")
        rng = random.Random(params.seed if params.seed is not None else time.monotonic_ns())
        limit = min(self.tokens, params.max_tokens or self.tokens)
        with self.lock:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        try:
            for i in range(1, limit + 1):
                time.sleep(self.pause_s)
                if "晚錯" in text and i == 3:
                    raise RuntimeError("the ink ran out")
                reason = None if i < limit else "length" if limit < self.tokens else "stop"
                yield Delta(rng.choice(CHARACTERS), reason, i)
        except GeneratorExit:
            self.closed.set()
            raise
        finally:
            with self.lock:
                self.running -= 1


@contextmanager
def live(app: object) -> Iterator[str]:
    """The base URL of an application that answers on a free port."""
    import uvicorn

    listener = claim_port("127.0.0.1", 0)
    server = uvicorn.Server(configure(app))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield url_of(listener)
    server.should_exit = True
    thread.join(10)
    listener.close()


@contextmanager
def undisturbed(url: str, engine: FakeEngine, **headers: str) -> Iterator[None]:
    """Streams, one after the other, that run while everything else is refused, and must come out whole."""
    engine.tokens, engine.pause_s = 190, 0.005
    body = {"model": engine.name, "messages": [{"role": "user", "content": "秋"}], "stream": True}
    streams, over = list[list[str]](), threading.Event()

    def read() -> None:
        while not over.is_set():
            with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, headers=headers, timeout=30) as response:
                streams.append(list(response.iter_lines()))

    thread = threading.Thread(target=read)
    thread.start()
    yield
    over.set()
    thread.join(30)
    engine.tokens, engine.pause_s = 12, 0.0
    assert streams
    for lines in streams:
        assert lines[-2] == "data: [DONE]"
        assert len([line for line in lines if '"content":"' in line and '"content":""' not in line]) == 190


def tiny_model(folder: Path, tokenizer: Path, *, context: int = 256) -> Path:
    """A small random model as a folder."""
    torch.manual_seed(3)
    ids = Tokenizer.load(tokenizer)
    config = DecoderConfig(
        vocab_size=ids.vocab_size, dim=32, layers=2, heads=4, kv_heads=2, head_dim=8, hidden=48, context=context
    )
    folder.mkdir()
    save_model(Decoder(config), folder, tokenizer=tokenizer, end_id=ids.end_id, bos_id=ids.bos_id, card="# tiny\n")
    return folder


def tiny_adapter(base: Path, folder: Path) -> Path:
    """A random adapter of rank 2 on the first layer of a model whose layers are named as Llama's, in PEFT's format."""
    shape = json.loads((base / "config.json").read_text())
    inputs, rank = shape["hidden_size"], 2
    outputs = shape["num_attention_heads"] * shape["head_dim"]
    dice = torch.Generator().manual_seed(1)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    tensors = {
        f"{name}A.weight": torch.randn(rank, inputs, generator=dice),
        f"{name}B.weight": torch.randn(outputs, rank, generator=dice),
    }
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder
