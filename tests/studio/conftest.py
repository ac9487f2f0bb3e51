"""A run folder, and a studio in front of a scripted poet."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from serve.fakes import live
from studio.fakes import Poet, make_run

from wenfang.studio import create_studio, find_model


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return make_run(tmp_path / "poet")


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """One studio for all tests of this process, as NiceGUI wants: `.url`, `.engine` and `.run`."""
    run, engine = make_run(tmp_path_factory.mktemp("runs") / "poet"), Poet()
    with live(create_studio(engine, find_model(run), host="127.0.0.1")) as url:
        yield SimpleNamespace(url=url, engine=engine, run=run)
