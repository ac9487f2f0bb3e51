"""`wenfang serve`: a model behind an OpenAI-compatible API."""

import contextlib
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from wenfang.cli.speculation import Ahead, Draft, LookupTokens, speculation
from wenfang.core.language import say
from wenfang.core.report import Reporter

_MODEL = say(
    zh="模型資料夾、GGUF 檔，或含有模型的執行結果（runs/…）。",
    en="A model folder, a GGUF file, or a run that made a model (runs/…).",
)
_HOST = say(
    zh="聆聽的位址；0.0.0.0 會對整個網路開放，而且沒有密碼。",
    en="Address to listen on; 0.0.0.0 opens it to the whole network, without a password.",
)
_PORT = say(zh="連接埠。", en="Port to listen on.")


def serve(
    model: Annotated[Path, Parameter(help=_MODEL)],
    /,
    *,
    host: Annotated[str, Parameter(help=_HOST)] = "127.0.0.1",
    port: Annotated[int, Parameter(help=_PORT)] = 8000,
    draft: Draft = None,
    lookup: LookupTokens = None,
    look_ahead: Ahead = False,
) -> None:
    """Serve a model behind an OpenAI-compatible API until Ctrl-C."""
    from wenfang.serve import claim_port, create_app, run_server, url_of
    from wenfang.studio import find_model

    found = find_model(model)
    with claim_port(host, port) as listener:  # Before the model is loaded, so that a clash shows at once.
        from wenfang.engine import Engine

        engine = Engine.load(found.model, speculation=speculation(draft, lookup, look_ahead))
        engine.name = found.name
        report = Reporter()
        warn_if_open(host, report)
        url = url_of(listener)
        ready = say(
            zh=f"模型 {engine.name} 已就緒：base_url={url}/v1（Ctrl-C 結束）",
            en=f"The model {engine.name} is ready: base_url={url}/v1 (Ctrl-C ends)",
        )
        with contextlib.closing(engine):
            run_server(create_app(engine, host=host), listener, on_ready=lambda: report.notice(ready))


def warn_if_open(host: str, report: Reporter) -> None:
    """Say so when others on the network can reach the server."""
    from wenfang.serve.listen import LOOPBACK

    if host not in LOOPBACK:
        report.warn(
            say(
                zh=f"位址 {host} 對網路開放：任何連得到的人都能使用，沒有密碼。",
                en=f"{host} is open to the network: whoever can reach it can use it, there is no password.",
            )
        )
