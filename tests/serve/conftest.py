"""One live server with a scripted engine for the tests of `serve`."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from openai import OpenAI
from serve.fakes import FakeEngine, live

from wenfang.serve import create_app


@pytest.fixture(scope="package")
def served() -> Iterator[SimpleNamespace]:
    """One server for all tests: `.engine` to script, `.url` to call."""
    engine = FakeEngine()
    with live(create_app(engine)) as url:
        yield SimpleNamespace(engine=engine, url=url)


@pytest.fixture
def engine(served: SimpleNamespace) -> FakeEngine:
    """The served engine, set back to its defaults."""
    served.engine.tokens, served.engine.pause_s, served.engine.most_running = 12, 0.0, 0
    served.engine.closed.clear()
    return served.engine


@pytest.fixture
def url(served: SimpleNamespace, engine: FakeEngine) -> str:
    return served.url


@pytest.fixture
def client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
