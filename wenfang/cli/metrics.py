"""`wenfang metrics`: what training measured, for other programs."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from rich.console import Console

from wenfang.cli.groups import arguments_group, commands_group, options_group
from wenfang.core.language import say

_FOLDER = say(zh="執行結果（runs/…）或一個訓練階段的產出。", en="A run (runs/…) or the output of a training stage.")
_TO = say(zh="給哪個程式看。", en="The program to write for.")
_OUT = say(
    zh="tensorboard：新資料夾。mlflow：資料夾或追蹤伺服器的 URL。",
    en="tensorboard: a new folder. mlflow: a folder or the URL of a tracking server.",
)
_EXPERIMENT = say(zh="mlflow：實驗名稱。", en="mlflow: name of the experiment.")


def export(
    folder: Annotated[Path, Parameter(help=_FOLDER)],
    /,
    *,
    to: Annotated[Literal["tensorboard", "mlflow"], Parameter(help=_TO)],
    out: Annotated[str, Parameter(help=_OUT)],
    experiment: Annotated[str, Parameter(help=_EXPERIMENT)] = "wenfang",
) -> None:
    """Hand the numbers of a run, finished or under way, to TensorBoard or MLflow."""
    from wenfang.recipe.tracking import read_measured, to_mlflow, to_tensorboard

    runs = read_measured(folder)
    if to == "tensorboard":
        to_tensorboard(runs, Path(out))
    else:
        to_mlflow(runs, out, experiment)
    count = sum(len(run.points) for run in runs)
    told = say(zh=f"{out}：{len(runs)} 個階段，{count:,} 個數", en=f"{out}: {len(runs)} stages, {count:,} numbers")
    Console().print(told, highlight=False, markup=False, soft_wrap=True)


def _app() -> App:
    room = App(
        name="metrics",
        help_epilogue="",
        group_commands=commands_group(),
        group_arguments=arguments_group(),
        group_parameters=options_group(),
    )
    example = "`wenfang metrics export runs/poet --to tensorboard --out logs`"
    room.command(
        export,
        name="export",
        help=say(
            zh="把執行的數值交給 TensorBoard 或 MLflow。", en="Hand the numbers of a run to TensorBoard or MLflow."
        ),
        help_epilogue=say(zh="例：", en="Example: ") + example,
    )
    return room


metrics = _app()
