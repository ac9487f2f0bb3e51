"""recipe: stages tied into one flow — checked before anything runs, cached, resumed, forecast.

`load_recipe` checks a YAML file against the stages' configs, `make_plan` says what is left to do and what it
costs, `run_recipe` does it; `execute_alone` runs a single stage. `STAGES` lists every stage there is. This room
names the rooms that work (`module:attribute`) but imports one only when its stage is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wenfang.recipe.check import Recipe, load_recipe
    from wenfang.recipe.execution import execute, execute_alone
    from wenfang.recipe.plan import Plan, make_plan
    from wenfang.recipe.run import StepResult, run_recipe
    from wenfang.recipe.stages import STAGES, Stage

__all__ = [
    "STAGES",
    "Plan",
    "Recipe",
    "Stage",
    "StepResult",
    "execute",
    "execute_alone",
    "load_recipe",
    "make_plan",
    "run_recipe",
]

_HOMES = {
    "STAGES": "stages",
    "Plan": "plan",
    "Recipe": "check",
    "Stage": "stages",
    "StepResult": "run",
    "execute": "execution",
    "execute_alone": "execution",
    "load_recipe": "check",
    "make_plan": "plan",
    "run_recipe": "run",
}


def __getattr__(name: str) -> object:
    """The public names, imported when first used: the command line needs only the stage table to start."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
