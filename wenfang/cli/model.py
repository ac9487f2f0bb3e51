"""`wenfang model`: look at a model, and carry it between Hugging Face folders and GGUF files."""

import json
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table

from wenfang.cli.groups import arguments_group, commands_group, options_group
from wenfang.cli.model_plan import plan
from wenfang.cli.verbs import verb
from wenfang.core.language import say
from wenfang.recipe.stages import STAGES

_FILE = say(zh="GGUF 檔。", en="The GGUF file.")
_FOLDER = say(zh="模型資料夾。", en="The model folder.")
_PATH = say(zh="模型資料夾或 GGUF 檔。", en="A model folder or a GGUF file.")
_OUT_FOLDER = say(zh="產出的資料夾；須為空或尚不存在。", en="Folder to make; it must be empty or not exist yet.")
_OUT_FILE = say(zh="要寫的檔案；已有的會被取代。", en="File to write; one that is there is replaced.")
_WEIGHTS = say(
    zh="權重的數字格式；量化過的會先還原。", en="Number format of the weights; quantised ones are restored first."
)
_DTYPE = say(
    zh="矩陣的格式：q4_0 最小，q8_0 幾乎無損，其餘不量化。",
    en="Format of the matrices: q4_0 is smallest, q8_0 loses almost nothing, the others are not quantised.",
)
_JSON = say(zh="以 JSON 印出。", en="Print JSON.")


def import_(
    file: Annotated[Path, Parameter(help=_FILE)],
    /,
    *,
    out: Annotated[Path, Parameter(help=_OUT_FOLDER)],
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], Parameter(help=_WEIGHTS)] = "float32",
) -> None:
    """Make a Hugging Face folder, which `transformers` opens, from a GGUF file."""
    import torch

    from wenfang.model.gguf import import_gguf

    import_gguf(file, out, dtype=getattr(torch, dtype))
    _done(out)


def export(
    folder: Annotated[Path, Parameter(help=_FOLDER)],
    /,
    *,
    out: Annotated[Path, Parameter(help=_OUT_FILE)],
    dtype: Annotated[Literal["f32", "f16", "bf16", "q8_0", "q4_0"], Parameter(help=_DTYPE)] = "q8_0",
) -> None:
    """Make a GGUF file, which llama.cpp runs, from a model folder."""
    from wenfang.model.gguf import export_gguf

    export_gguf(folder, out, dtype=dtype)
    _done(out)


def show(
    path: Annotated[Path, Parameter(help=_PATH)],
    /,
    *,
    as_json: Annotated[bool, Parameter(name="--json", negative="", help=_JSON)] = False,
) -> None:
    """Show a model's shape, size and formats without loading it."""
    from wenfang.model.account import describe_model

    account = describe_model(path)
    if as_json:
        print(json.dumps(account, ensure_ascii=False, indent=2))
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in account.items():
        table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value))
    Console().print(table)


def _done(out: Path) -> None:
    from wenfang.recipe.figures import size

    written = (
        sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) if out.is_dir() else out.stat().st_size
    )
    Console().print(f"{out}: {size(written)}", highlight=False, markup=False, soft_wrap=True)


def _listed(*commands: str) -> str:
    return say(zh="例：", en="Examples:") + "\n\n" + "\n".join(f"- `{command}`" for command in commands)


def _app() -> App:
    room = App(
        name="model",
        help_epilogue=_listed("wenfang model show models/poet", "wenfang model export models/poet --out poet.gguf"),
        group_commands=commands_group(),
        group_arguments=arguments_group(),
        group_parameters=options_group(),
    )
    room.command(
        import_,
        name="import",
        help=say(zh="從 GGUF 檔做成模型資料夾。", en="Make a model folder from a GGUF file."),
        help_epilogue=_listed("wenfang model import SmolLM2-135M.gguf --out models/smollm2"),
    )
    room.command(
        export,
        name="export",
        help=say(
            zh="把模型資料夾寫成 GGUF 檔，供 llama.cpp 使用。", en="Write a model folder as a GGUF file for llama.cpp."
        ),
        help_epilogue=_listed("wenfang model export models/poet --out poet.gguf --dtype q8_0"),
    )
    room.command(
        show,
        name="show",
        help=say(
            zh="看模型的架構、大小與格式，不載入權重。", en="Show a model's shape, size and formats without loading it."
        ),
        help_epilogue=_listed("wenfang model show models/poet", "wenfang model show poet.gguf --json"),
    )
    room.command(
        plan,
        name="plan",
        help=say(
            zh="預估記憶體、運算量與速度，不配置任何東西。",
            en="Forecast memory, arithmetic and speed before anything is allocated.",
        ),
        help_epilogue=_listed(
            "wenfang model plan models/poet", "wenfang model plan config.json --hardware h100 --batch 4"
        ),
    )
    room.command(verb(STAGES["model.compare"]))
    return room


model = _app()
