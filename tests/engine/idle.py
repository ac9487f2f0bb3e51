"""Waiting for an engine in tests."""

from wenfang.engine import Engine


def wait_idle(engine: Engine) -> None:
    """Until the engine has nothing to do, and so has checked its books."""
    while True:
        with engine._changed:
            if not (engine._scheduler.running or engine._scheduler.waiting):
                engine._scheduler.check()
                return
