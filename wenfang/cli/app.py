"""The command line as a whole: which words there are and what happens when one fails."""

import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, CycloptsError, Parameter

from wenfang import __version__
from wenfang.cli.failure import fail, unexpected
from wenfang.cli.groups import arguments_group, commands_group, options_group
from wenfang.core.errors import WenfangError
from wenfang.core.language import language, say
from wenfang.recipe.stages import STAGES

if TYPE_CHECKING:
    from cyclopts.help.protocols import HelpFormatter


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 for a failure, 2 for bad input, 128 + n for signal n.

    Args:
        argv: the words after `wenfang`; those of the process by default.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if argv is None and not debug:
        sys.excepthook = unexpected
    try:
        result = build_app().meta(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()  # A reader that left is noticed here rather than at exit, where nothing could be said.
    except (WenfangError, CycloptsError, OSError, MemoryError, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        return fail(error)
    return result if isinstance(result, int) else 0


def build_app() -> App:
    """All commands, none of them imported yet."""
    app = App(
        name="wenfang",
        version=__version__,
        help=say(
            zh="文房：在自己的機器上走完語言模型的一生——從原始文字到能用的助理，正體中文優先。",
            en="文房: a language model's whole life on your own machine, Traditional Chinese first.",
        ),
        help_epilogue=_examples(),
        group_commands=commands_group(),
        group_arguments=arguments_group(),
        group_parameters=options_group(),
        help_format="plaintext",
        help_formatter=_formatter() if language() == "zh" else "default",
        suppress_keyboard_interrupt=False,
    )
    app["--help"].help = say(zh="顯示這份說明。", en="Show this help.")
    app["--version"].help = say(zh="顯示版本。", en="Show the version.")
    _add_commands(app)
    _add_rooms(app)
    _add_debug(app)
    return app


def _formatter() -> "HelpFormatter":
    from wenfang.cli.help import ChineseFormatter

    return ChineseFormatter()


def _add_commands(app: App) -> None:
    app.command(
        "wenfang.cli.run:run",
        name="run",
        help=say(
            zh="執行配方：未變的階段沿用，中斷的接續，其餘重做。",
            en="Run a recipe: keep what is unchanged, continue what was interrupted, make the rest.",
        ),
        help_epilogue=_run_examples(),
        sort_key=0,
    )
    about = {
        "chat": say(zh="在終端機與模型對話。", en="Talk with a model in the terminal."),
        "serve": say(zh="以 OpenAI 相容的 API 提供模型。", en="Serve a model behind an OpenAI-compatible API."),
        "studio": say(zh="在瀏覽器開啟文房。", en="Open the studio page in the browser."),
    }
    for order, (name, examples) in enumerate(
        (("chat", _CHAT_EXAMPLES), ("serve", None), ("studio", _STUDIO_EXAMPLES)), start=1
    ):
        target = f"wenfang.cli.{name}:{name}"
        if examples is None:  # It has verbs of its own, and says itself how it is used.
            app.command(target, name=name, help=about[name], sort_key=order)
        else:
            app.command(target, name=name, help=about[name], help_epilogue=_listed(examples), sort_key=order)


def _add_rooms(app: App) -> None:
    """One word per room; the stages of a room are its verbs, so `train.sft` is `wenfang train sft`."""
    about_model = say(zh="看、預估與比較模型，讀寫 GGUF。", en="Look at, plan and compare models; read and write GGUF.")
    app.command("wenfang.cli.model:model", name="model", help=about_model, sort_key=9)
    about_engine = say(zh="看文字如何生成。", en="Look into how text is generated.")
    app.command("wenfang.cli.engine:engine", name="engine", help=about_engine, sort_key=9)
    about_metrics = say(zh="把訓練的數值交給其他程式。", en="Hand what training measured to other programs.")
    app.command("wenfang.cli.metrics:metrics", name="metrics", help=about_metrics, sort_key=9)
    about = {
        "data": say(zh="把文字整理成語料。", en="Turn text into a corpus."),
        "tokenizer": say(zh="訓練分詞器。", en="Train a tokenizer."),
        "train": say(zh="訓練模型。", en="Train a model."),
        "evaluate": say(zh="評量模型。", en="Measure a model."),
    }
    for order, room in enumerate(dict.fromkeys(name.partition(".")[0] for name in STAGES), start=10):
        if room == "model":  # Its verbs stand beside those that are no stages.
            continue
        app.command(f"wenfang.cli.verbs:{room}", name=room, help=about.get(room), sort_key=order)


def _add_debug(app: App) -> None:
    @app.meta.default
    def launch(
        *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
        debug: Annotated[
            bool,
            Parameter(
                negative="",
                show_default=False,
                help=say(zh="失敗時顯示完整的追蹤。", en="Show the full traceback of a failure."),
            ),
        ] = False,
    ) -> object:
        return app(tokens, exit_on_error=False, print_error=False, result_action="return_value")


def _examples() -> str:
    return say(
        zh="例：\n\n"
        "- `wenfang run recipes/poet.yaml --dry-run`：看計畫與預估\n"
        "- `wenfang run recipes/poet.yaml`：訓練一位詩人\n"
        "- `wenfang studio runs/poet`：在瀏覽器裡與它對話\n"
        "- `wenfang data prepare --help`：一個階段的所有選項",
        en="Examples:\n\n"
        "- `wenfang run recipes/poet.yaml --dry-run`: see the plan and what it costs\n"
        "- `wenfang run recipes/poet.yaml`: train a poet\n"
        "- `wenfang studio runs/poet`: talk with it in the browser\n"
        "- `wenfang data prepare --help`: every option of one stage",
    )


_CHAT_EXAMPLES = (
    "wenfang chat models/poet",
    "wenfang chat model.gguf",
    'wenfang chat runs/poet --once "寫一首五言絕句，題為〈秋夜〉。"',
)
_STUDIO_EXAMPLES = ("wenfang studio runs/poet", "wenfang studio models/poet --port 8401 --open")


def _listed(commands: tuple[str, ...]) -> str:
    return say(zh="例：", en="Examples:") + "\n\n" + "\n".join(f"- `{command}`" for command in commands)


def _run_examples() -> str:
    return say(
        zh="例：\n\n"
        "- `wenfang run recipes/poet.yaml`\n"
        "- `wenfang run recipes/poet.yaml sft.epochs=2`：改一個值，其餘照舊\n"
        "- `wenfang run recipes/poet.yaml --dry-run`：只看計畫、時間、記憶體與磁碟\n"
        "- `wenfang run recipes/poet.yaml --runs /data/runs`：產出放到別處",
        en="Examples:\n\n"
        "- `wenfang run recipes/poet.yaml`\n"
        "- `wenfang run recipes/poet.yaml sft.epochs=2`: change one value\n"
        "- `wenfang run recipes/poet.yaml --dry-run`: only the plan, its time, memory and disk\n"
        "- `wenfang run recipes/poet.yaml --runs /data/runs`: keep outputs elsewhere",
    )
