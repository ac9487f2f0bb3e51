"""The stages as commands, made from the stage table: `wenfang data prepare` takes the options of `data.prepare`.

A room is an attribute of this module that exists when asked for (`verbs.data`), so that the command line can
name every room and import none.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, ArgumentCollection, Parameter, validators
from rich.console import Console

from wenfang.cli import chinese
from wenfang.cli.groups import commands_group, options_group
from wenfang.cli.interrupt import resumable
from wenfang.cli.launch import is_worker, launch
from wenfang.core.config import Config, input_fields
from wenfang.core.language import language, say
from wenfang.core.report import Reporter
from wenfang.recipe.execution import assist, execute_alone
from wenfang.recipe.figures import duration
from wenfang.recipe.stages import STAGES, Stage
from wenfang.recipe.tables import summary_line


def __getattr__(name: str) -> App:
    """The commands of a room; showing them imports the configs of its stages and nothing else."""
    stages = [stage for stage in STAGES.values() if stage.name.startswith(f"{name}.")]
    if not stages:
        raise AttributeError(name)
    room = App(name=name, help_epilogue="", group_commands=commands_group(), group_parameters=options_group())
    for stage in stages:
        room.command(verb(stage))
    return room


def verb(stage: Stage) -> App:
    """The command of a stage: its config's fields as options, each explained, and `--out`."""
    config_class = stage.config_class()
    app = _Verb(
        name=stage.name.partition(".")[2],
        help=say(zh=chinese.SUMMARIES.get(stage.name, ""), en="") or config_class.__doc__,
        help_epilogue=_example(stage, config_class),
        group_parameters=options_group(),
    )
    app.default(_command(stage, config_class))
    return app


class _Verb(App):
    """A command whose options come from a config; cyclopts shows its docstrings, and Chinese readers get Chinese."""

    def assemble_argument_collection(self, **how: Any) -> ArgumentCollection:
        arguments = super().assemble_argument_collection(**how)
        if language() == "zh":
            for config in arguments:
                for option in config.children:
                    text = chinese.option(config.hint, option.keys[-1])
                    option.parameter = Parameter.combine(option.parameter, Parameter(help=text))
        return arguments


def _command(stage: Stage, config_class: type[Config]) -> Callable[..., None]:
    def alone(*, config: Config, out: Path) -> None:
        with resumable():
            manifest = execute_alone(stage, config, out, Reporter())
        Console().print(
            f"{out}: {summary_line(manifest.summary)} · {duration(manifest.seconds)}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    def together(*, config: Config, out: Path, nproc: int = 1) -> None:
        if nproc > 1 and not is_worker():
            launch(nproc)
        elif os.environ.get("RANK", "0") != "0":
            with resumable():
                assist(stage, config)
        else:
            alone(config=config, out=out)

    command: Callable[..., None] = together if stage.parallel else alone
    where = say(zh="產出的資料夾；須為空或尚不存在。", en="Folder to make; it must be empty or not exist yet.")
    shared = say(zh="分擔每一批資料的行程數。", en="Processes that share the rows of each batch.")
    command.__annotations__ = {
        "config": Annotated[config_class, Parameter(name="*", negative_iterable=())],
        "out": Annotated[Path, Parameter(help=where)],
        "return": None,
    }
    if stage.parallel:
        command.__annotations__["nproc"] = Annotated[int, Parameter(help=shared, validator=validators.Number(gte=1))]
    if not any(field.is_required() for field in config_class.model_fields.values()):
        command.__kwdefaults__ = {**(command.__kwdefaults__ or {}), "config": config_class()}
    return command


def _example(stage: Stage, config_class: type[Config]) -> str:
    words = ["wenfang", *stage.name.split(".")]
    inputs = input_fields(config_class)
    for name, field in config_class.model_fields.items():
        if field.is_required():
            words += [f"--{name.replace('_', '-')}", "DIR" if name in inputs else name.upper()]
    words += ["--out", "DIR"]
    return say(zh="例：", en="Example: ") + f"`{' '.join(words)}`"
