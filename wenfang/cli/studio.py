"""`wenfang studio`: the page in the browser."""

import contextlib
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from wenfang.core.language import say
from wenfang.core.report import Reporter

_WHAT = say(
    zh="執行結果（runs/…，含訓練曲線），或模型資料夾、GGUF 檔。",
    en="A run (runs/…, with its curves), a model folder or a GGUF file.",
)
_HOST = say(
    zh="聆聽的位址；0.0.0.0 會對整個網路開放，而且沒有密碼。",
    en="Address to listen on; 0.0.0.0 opens it to the whole network, without a password.",
)
_PORT = say(zh="連接埠。", en="Port to listen on.")
_OPEN = say(zh="備妥後開啟瀏覽器。", en="Open the browser once the page is ready.")


def studio(
    run_or_model: Annotated[Path, Parameter(help=_WHAT)],
    /,
    *,
    host: Annotated[str, Parameter(help=_HOST)] = "127.0.0.1",
    port: Annotated[int, Parameter(help=_PORT)] = 8400,
    open_browser: Annotated[bool, Parameter(name="--open", negative="", help=_OPEN)] = False,
) -> None:
    """Open the studio page, and the API beside it, until Ctrl-C."""
    from wenfang.cli.serve import warn_if_open
    from wenfang.serve import claim_port, run_server, url_of
    from wenfang.studio import create_studio, find_model

    found = find_model(run_or_model)
    with claim_port(host, port) as listener:  # Before the model is loaded, so that a clash shows at once.
        from wenfang.engine import Engine

        engine = Engine.load(found.model)
        engine.name = found.name
        report, url = Reporter(), url_of(listener)
        warn_if_open(host, report)

        def ready() -> None:
            report.notice(say(zh=f"文房已開：{url}（Ctrl-C 結束）", en=f"The studio is open: {url} (Ctrl-C ends)"))
            if open_browser:
                import webbrowser

                webbrowser.open(url)

        with contextlib.closing(engine):
            run_server(create_studio(engine, found, host=host), listener, on_ready=ready)
