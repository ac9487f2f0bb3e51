"""Judges that need preparing."""

from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def official_rwkv() -> ModuleType:
    """The RWKV authors' own inference code; its RWKV-7 is there only where the environment says so on import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RWKV_V7_ON", "1")
        from rwkv import model
    return model
