"""Kernels compiled for this and for other processors."""

import ctypes
import functools
from collections.abc import Callable

import pytest
from native.processors import compiled_for


@pytest.fixture(scope="module")
def libraries(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ctypes.CDLL]:
    """The kernel that the module calls `KERNEL`, for a processor, emulated where need be."""
    folder = tmp_path_factory.mktemp("kernel")
    return functools.cache(lambda processor: compiled_for(processor, request.module.KERNEL.SOURCE, folder))


@pytest.fixture
def run_on(
    request: pytest.FixtureRequest, libraries: Callable[[str], ctypes.CDLL], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], None]:
    """Has the module's kernel run as on a processor; "this" is the one at hand."""

    def choose(processor: str) -> None:
        if processor != "this":
            library = libraries(processor)
            monkeypatch.setattr(request.module.KERNEL, "_library", lambda: library)

    return choose
