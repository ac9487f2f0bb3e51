"""`wenfang run`: a recipe from its first stage to its last."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from wenfang.cli.interrupt import resumable
from wenfang.core.language import say
from wenfang.core.report import Reporter
from wenfang.recipe import load_recipe, make_plan, run_recipe
from wenfang.recipe.tables import plan_table, result_table

_RECIPE = say(zh="配方檔（YAML）。", en="The recipe, a YAML file.")
_OVERRIDES = say(zh="改動的值，寫成 `階段.選項=值`。", en="Values to change, as `stage.option=value`.")
_DRY_RUN = say(
    zh="只顯示計畫與預估的時間、記憶體、磁碟，不執行。",
    en="Only show the plan with its forecast of time, memory and disk.",
)
_RUNS = say(zh="產出所在的資料夾。", en="Folder that outputs go to.")


def run(
    recipe: Annotated[Path, Parameter(help=_RECIPE)],
    /,
    *overrides: Annotated[str, Parameter(help=_OVERRIDES)],
    dry_run: Annotated[bool, Parameter(negative="", show_default=False, help=_DRY_RUN)] = False,
    runs: Annotated[Path, Parameter(help=_RUNS)] = Path("runs"),
) -> None:
    """Check a recipe and run what it has left to do."""
    checked = load_recipe(recipe, overrides)
    console = Console()
    if dry_run:
        plan = make_plan(checked, runs)
        console.print(plan_table(plan))
        plan.check()
        return
    with resumable():
        results = run_recipe(checked, runs=runs, report=Reporter())
    console.print(result_table(results))
