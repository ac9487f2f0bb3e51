"""The words that cyclopts itself puts into help, in Chinese."""

from typing import TYPE_CHECKING, Any, cast

from cyclopts.help import DefaultFormatter, HelpEntry, HelpPanel
from cyclopts.help.inline_text import InlineText
from cyclopts.help.specs import (
    ColumnSpec,
    DescriptionColumn,
    DescriptionRenderer,
    get_default_command_columns,
    get_default_parameter_columns,
)

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType


class ChineseFormatter(DefaultFormatter):
    """cyclopts's own form of help, with 用法, 可選, 預設 and 必填."""

    def __call__(self, console: "Console", options: "ConsoleOptions", panel: HelpPanel) -> None:
        """Print a panel."""
        columns = get_default_command_columns if panel.format == "command" else _parameter_columns
        DefaultFormatter(column_specs=columns)(console, options, panel)

    def render_usage(self, console: "Console", options: "ConsoleOptions", usage: Any) -> None:
        """Print how the command is called."""
        from rich.text import Text

        if usage:
            console.print(Text(f"用法：{usage}", "bold"))


class _Description(DescriptionRenderer):
    """What an option is for, what may be given and what is given if nothing is."""

    def __call__(self, entry: HelpEntry) -> "RenderableType":
        from rich.text import Text

        description = cast(InlineText, super().__call__(entry.copy(choices=None, default=None, required=False)))
        if entry.choices:
            description.append(Text(f"[可選：{', '.join(entry.choices)}]", "cyclopts.choices"))
        if entry.default is not None:
            description.append(Text(f"[預設：{entry.default}]", "cyclopts.default"))
        if entry.required:
            description.append(Text("[必填]", "cyclopts.required"))
        return description


def _parameter_columns(
    console: "Console", options: "ConsoleOptions", entries: list[HelpEntry]
) -> tuple[ColumnSpec, ...]:
    columns = get_default_parameter_columns(console, options, entries)
    return tuple(one.copy(renderer=_Description()) if one is DescriptionColumn else one for one in columns)
