"""Several models and adapters in too little memory."""

import json
from pathlib import Path

import httpx
import pytest
from openai import OpenAI
from serve.fakes import FakeEngine, live

from wenfang.core.errors import InputError
from wenfang.engine import Engine
from wenfang.model import Decoder, DecoderConfig
from wenfang.model.families import family_for
from wenfang.serve import Metrics, ModelPool, Source, create_app_for

ASK = [{"role": "user", "content": "秋"}]
SHAPE = DecoderConfig(vocab_size=100, dim=32, layers=1, heads=2, kv_heads=1, head_dim=16, hidden=48)
SIZE = 4 * sum(weight.numel() for weight in Decoder(SHAPE).parameters())


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Source]:
    """Three models of `SIZE` bytes; `Engine.load` gives scripted engines that tell when they are closed."""
    found = []
    for name in ("a", "b", "c"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", **family_for(SHAPE).to_hf(SHAPE)}))
        found.append(Source(name, folder))

    def load(folder: Path, **options: object) -> FakeEngine:
        engine = FakeEngine()
        engine.pause_s, engine.shut, engine.used = 0.01, False, []
        engine.close = lambda: setattr(engine, "shut", True)
        engine.load_adapter = lambda name, path: None
        stream = engine.stream
        engine.stream = lambda prompt, params, adapter=None: engine.used.append(adapter) or stream(prompt, params)
        return engine

    monkeypatch.setattr(Engine, "load", load)
    return found


def ask(url: str, model: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json={"model": model, "messages": ASK})


def test_models_come_and_go_within_the_budget(sources: list[Source]) -> None:
    pool = ModelPool(sources, memory_bytes=2 * SIZE + 1, meter=Metrics())
    with live(create_app_for(pool, metrics=Metrics())) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
        for model in ("a", "b", "a", "c"):
            answer = client.chat.completions.create(model=model, messages=ASK)
            assert answer.model == model
        assert {served.name for served in pool.loaded()} == {"a", "c"}  # b was unused for longest.
        described = {m["id"]: m["loaded"] for m in httpx.get(f"{url}/v1/models").json()["data"]}
        assert described == {"a": True, "b": False, "c": True}
        assert ask(url, "d").status_code == 404
        assert httpx.get(f"{url}/health").status_code == 200


def test_a_model_in_use_stays(sources: list[Source]) -> None:
    pool = ModelPool(sources, memory_bytes=SIZE, meter=Metrics())
    with live(create_app_for(pool, metrics=Metrics())) as url:
        assert ask(url, "a").status_code == 200
        engine = pool.loaded()[0].engine
        engine.pause_s = 0.3
        body = {"model": "a", "messages": ASK, "stream": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            refused = ask(url, "b")
            assert refused.status_code == 503
            assert refused.headers["Retry-After"] == "5"
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert ask(url, "b").status_code == 200
        assert engine.shut


def test_adapters_are_models_on_one_base(sources: list[Source], tmp_path: Path) -> None:
    base = Source("a", sources[0].path, {"poet": tmp_path, "clerk": tmp_path})
    pool = ModelPool([base], memory_bytes=None, meter=Metrics())
    with live(create_app_for(pool, metrics=Metrics())) as url:
        for model in ("poet", "a", "clerk"):
            assert ask(url, model).json()["model"] == model
        assert pool.loaded()[0].engine.used[:3] == ["poet", None, "clerk"]
        assert len(pool.loaded()) == 1
        embedded = httpx.post(f"{url}/v1/embeddings", json={"model": "poet", "input": "秋"})
        assert embedded.json()["error"]["param"] == "model"


def test_what_can_never_fit_is_refused_at_once(sources: list[Source]) -> None:
    with pytest.raises(InputError, match="memory budget"):
        ModelPool(sources, memory_bytes=SIZE - 1, meter=Metrics())
    with pytest.raises(InputError, match="Two models"):
        ModelPool([sources[0], sources[0]], memory_bytes=None, meter=Metrics())
