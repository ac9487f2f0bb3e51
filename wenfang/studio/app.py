"""The studio as one application: the page at `/` and the API at `/v1`, on one port."""

import warnings
from importlib.resources import files
from typing import TYPE_CHECKING

from wenfang.studio.run import Found

if TYPE_CHECKING:
    from fastapi import FastAPI

    from wenfang.engine import Engine

SEAL = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64"><rect width="64" height="64" rx="9" fill="#a8382b"/>'
    '<text x="32" y="46" font-size="40" text-anchor="middle" fill="#fbf8f0" font-family="serif">文</text></svg>'
)


def create_studio(engine: "Engine", found: Found, *, host: str) -> "FastAPI":
    """The application. NiceGUI keeps its own in a global, so a process can have one.

    Args:
        engine: the loaded model; the caller closes it after the server has stopped.
        found: where the model's training records are.
        host: where the server will listen.
    """
    from fastapi import Request
    from nicegui import ui

    from wenfang.serve import Dispatcher, create_app
    from wenfang.studio.page import StudioPage

    # At its start NiceGUI looks at every object in the process, which wakes a deprecated one of torch's.
    warnings.filterwarnings("ignore", "`torch.distributed.reduce_op` is deprecated", FutureWarning)

    dispatcher = Dispatcher(engine)
    app = create_app(engine, host=host, dispatcher=dispatcher)
    ui.add_css(files("wenfang.studio").joinpath("studio.css").read_text(encoding="utf-8"), shared=True)
    ui.add_head_html(
        f"<script>{files('wenfang.studio').joinpath('studio.js').read_text(encoding='utf-8')}</script>", shared=True
    )

    @ui.page("/")
    def page(request: Request) -> None:
        StudioPage(dispatcher, found, request)

    ui.run_with(
        app,
        title="文房 Wenfang",
        favicon=SEAL,
        language="zh-TW",
        tailwind=False,
        show_welcome_message=False,
        reconnect_timeout=60.0,  # A telephone that slept for a moment finds its conversation again.
    )
    return app
