"""`wenfang serve`: a model behind an OpenAI-compatible API, and the keys that open it."""

import contextlib
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter, validators

from wenfang.cli.groups import arguments_group, commands_group, options_group
from wenfang.cli.interrupt import unwinding
from wenfang.cli.speculation import Ahead, Draft, LookupTokens, speculation
from wenfang.cli.weights import Quantize
from wenfang.core.errors import InputError
from wenfang.core.language import say
from wenfang.core.report import Reporter

_MODEL = say(
    zh="模型資料夾、GGUF 檔，或含有模型的執行結果（runs/…）。",
    en="A model folder, a GGUF file, or a run that made a model (runs/…).",
)
_HOST = say(
    zh="聆聽的位址；0.0.0.0 會對整個網路開放，請加 --keys。",
    en="Address to listen on; 0.0.0.0 opens it to the whole network: add --keys.",
)
_MORE = say(zh="更多模型；有人用到時才載入。", en="More models, loaded when somebody asks for them.")
_ADAPTER = say(
    zh="第一個模型的轉接器：--adapter.名字 資料夾。", en="An adapter on the first model: --adapter.NAME FOLDER."
)
_MEMORY = say(
    zh="模型權重最多共占多少 GB 記憶體；不夠時先放掉閒置的。",
    en="Most memory for the weights of all models, in GB; idle ones are let go when others need room.",
)
_KEYS = say(
    zh="API 金鑰檔；有它就只接受其中的金鑰。用 `wenfang serve key new` 建立。",
    en="File of API keys; only these are accepted then. Made by `wenfang serve key new`.",
)
_ENGINE = say(
    zh="誰來書寫：wenfang；vllm（須另裝，會在本機啟動它）；或伺服器網址（同一個模型在那裡執行）。",
    en="Who writes: wenfang; vllm (to be installed; started here); or the address of a server with the same model.",
)
_DRAIN = say(zh="結束時，進行中的回覆還能寫幾秒。", en="Seconds that answers may run on after a signal to end.")
_FILE = say(zh="金鑰檔；不存在就建立。", en="The key file; made if it does not exist.")
_NAME = say(zh="這把金鑰叫什麼。", en="What to call this key.")
_REQUESTS = say(zh="每分鐘最多幾個請求。", en="Most requests in a minute.")
_CONCURRENT = say(zh="同時最多幾個請求。", en="Most requests at once.")
_TOKENS = say(zh="每分鐘最多幾個詞元，讀寫都算。", en="Most tokens in a minute, read and written.")
_PORT = say(zh="連接埠。", en="Port to listen on.")
_ALLOWED = validators.Number(gte=1, lt=2**31)


_EXAMPLES = ("wenfang serve models/poet", "wenfang serve runs/poet --port 8080", "wenfang serve key new keys.json")

serve = App(
    name="serve",
    help_epilogue=say(zh="例：", en="Examples:") + "\n\n" + "\n".join(f"- `{command}`" for command in _EXAMPLES),
    group_commands=commands_group(),
    group_arguments=arguments_group(),
    group_parameters=options_group(),
)
"""`wenfang serve MODEL`, and `wenfang serve key new`."""

key = App(
    name="key",
    help=say(zh="管理 API 金鑰。", en="Manage API keys."),
    group_commands=commands_group(),
    group_arguments=arguments_group(),
    group_parameters=options_group(),
)
serve.command(key)


@serve.default
def run(
    model: Annotated[Path, Parameter(help=_MODEL)],
    /,
    *more: Annotated[Path, Parameter(help=_MORE)],
    host: Annotated[str, Parameter(help=_HOST)] = "127.0.0.1",
    port: Annotated[int, Parameter(help=_PORT)] = 8000,
    draft: Draft = None,
    lookup: LookupTokens = None,
    look_ahead: Ahead = False,
    quantize: Quantize = None,
    keys: Annotated[Path | None, Parameter(help=_KEYS)] = None,
    adapter: Annotated[dict[str, Path] | None, Parameter(help=_ADAPTER)] = None,
    memory_gb: Annotated[float | None, Parameter(help=_MEMORY, validator=validators.Number(gt=0, lt=1_000_000))] = None,
    drain_s: Annotated[int, Parameter(help=_DRAIN, validator=validators.Number(gte=0, lt=1_000_000))] = 30,
    engine: Annotated[str, Parameter(help=_ENGINE)] = "wenfang",
) -> None:
    """Serve models behind an OpenAI-compatible API until Ctrl-C."""
    own = {
        "--draft": draft, "--lookup": lookup, "--look-ahead": look_ahead or None, "--quantize": quantize,
        "--adapter": None if engine == "vllm" else adapter, "--memory-gb": memory_gb,
        str(next(iter(more), "")): more or None,
    }  # fmt: skip
    check_engine(engine, [name for name, value in own.items() if value is not None])
    from wenfang.serve import Metrics, ModelPool, Source, claim_port, create_app_for, load_keys, run_server, url_of
    from wenfang.studio import find_model

    first, *others = [find_model(path) for path in (model, *more)]
    guesser = speculation(draft, lookup, look_ahead) if draft or lookup is not None or look_ahead else None
    sources = [
        Source(first.name, first.model, adapter or {}, guesser, quantize, engine),
        *(Source(other.name, other.model, quantize=quantize) for other in others),
    ]
    ring, metrics = None if keys is None else load_keys(keys), Metrics()
    budget = None if memory_gb is None else int(memory_gb * 1e9)
    # The port before the model is loaded, so that a clash shows at once.
    with unwinding(), claim_port(host, port) as listener:
        pool = ModelPool(sources, memory_bytes=budget, meter=metrics)
        pool.load(first.name)
        report = Reporter()
        if ring is None:
            warn_if_open(host, report)
        url = url_of(listener)
        ready = say(
            zh=f"模型 {first.name} 已就緒：base_url={url}/v1（Ctrl-C 結束）",
            en=f"The model {first.name} is ready: base_url={url}/v1 (Ctrl-C ends)",
        )
        with contextlib.closing(pool):
            app = create_app_for(pool, metrics=metrics, host=host, keys=ring)
            run_server(app, listener, on_ready=lambda: report.notice(ready), drain_s=drain_s)


def new(
    file: Annotated[Path, Parameter(help=_FILE)],
    /,
    *,
    name: Annotated[str, Parameter(help=_NAME)] = "default",
    requests_per_minute: Annotated[int | None, Parameter(help=_REQUESTS, validator=_ALLOWED)] = None,
    concurrent: Annotated[int | None, Parameter(help=_CONCURRENT, validator=_ALLOWED)] = None,
    tokens_per_minute: Annotated[int | None, Parameter(help=_TOKENS, validator=_ALLOWED)] = None,
) -> None:
    """Add a key to a file and print it, this once: the file keeps only its hash."""
    from wenfang.serve import Allowance, new_key

    print(new_key(file, name, Allowance(requests_per_minute, concurrent, tokens_per_minute)))


key.command(
    new,
    help=say(
        zh="在檔案裡加一把金鑰並印出它，只此一次：檔案只留雜湊值。",
        en="Add a key to a file and print it, this once: the file keeps only its hash.",
    ),
    help_epilogue=say(zh="例：", en="Example:") + "\n\n- `wenfang serve key new keys.json --name alice`",
)


def check_engine(engine: str, own: list[str]) -> None:
    """Refuse an engine that is none, and what only our own can do with another.

    Args:
        engine: what was asked for.
        own: options for our own engine that were given.

    Raises:
        InputError: the first such thing.
    """
    if engine == "wenfang":
        return
    if engine != "vllm" and not engine.startswith(("http://", "https://")):
        raise InputError(
            say(
                zh=f"沒有引擎 {engine!r}。可用 wenfang、vllm，或 http:// 開頭的網址。",
                en=f"There is no engine {engine!r}. Use wenfang, vllm, or an address that begins with http://.",
            )
        )
    if own:
        raise InputError(
            say(zh=f"{own[0]!r} 不能與 --engine {engine} 並用。", en=f"{own[0]!r} does not go with --engine {engine}.")
        )


def warn_if_open(host: str, report: Reporter) -> None:
    """Say so when others on the network can reach the server."""
    from wenfang.serve.listen import LOOPBACK

    if host not in LOOPBACK:
        report.warn(
            say(
                zh=f"位址 {host} 對網路開放：任何連得到的人都能使用，沒有密碼。請加 --keys。",
                en=f"{host} is open to the network: whoever can reach it can use it, there is no password. Add --keys.",
            )
        )
