"""The curl commands of docs/serving.md, as a shell runs them."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from serve.fakes import FakeEngine, live

from wenfang.serve import create_app

GUIDE = Path(__file__).parents[2] / "docs" / "serving.md"
COMMANDS = [block for block in re.findall(r"```sh\n(.*?)```", GUIDE.read_text(), re.DOTALL) if block.startswith("curl")]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with live(create_app(FakeEngine())) as url:
        yield url


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: re.search(r"\$URL(\S+)", command)[1])
def test_the_guide_works(address: str, command: str) -> None:
    environment = {**os.environ, "URL": address, "MODEL": FakeEngine.name}
    shown = ["sh", "-c", command.replace("curl ", "curl --fail-with-body ", 1)]
    done = subprocess.run(shown, capture_output=True, text=True, env=environment, timeout=30)
    assert done.returncode == 0, done.stdout
    if "/metrics" in command:
        assert "wenfang_cache_used_ratio" in done.stdout
    elif "stream" in command:
        assert done.stdout.rstrip().endswith("data: [DONE]")
    elif "/api/chat" in command:
        assert [json.loads(line)["done"] for line in done.stdout.splitlines()][-1]
    else:
        assert isinstance(json.loads(done.stdout), dict)


def test_the_guide_has_them() -> None:
    assert len(COMMANDS) >= 10
