"""Titles of the panels in help texts."""

from cyclopts import Group

from wenfang.core.language import say


def commands_group() -> Group:
    """Where commands are listed."""
    return Group(say(zh="指令", en="Commands"))


def arguments_group() -> Group:
    """Where words without a name are explained."""
    return Group(say(zh="引數", en="Arguments"))


def options_group() -> Group:
    """Where `--options` are explained."""
    return Group(say(zh="選項", en="Options"))
