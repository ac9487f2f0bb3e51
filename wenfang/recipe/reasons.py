"""What pydantic found wrong with a config, in words a recipe's author understands."""

from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from wenfang.core.config import Config, input_fields
from wenfang.core.errors import nearest
from wenfang.core.language import say

_WANTED = {
    "bool": ("true 或 false", "true or false"),
    "int": ("整數", "a whole number"),
    "float": ("數字", "a number"),
    "string": ("文字", "text"),
    "path": ("路徑", "a path"),
    "list": ("清單", "a list"),
    "tuple": ("清單", "a list"),
    "dict": ("對照表（鍵: 值）", "a mapping (key: value)"),
    "model": ("對照表（鍵: 值）", "a mapping (key: value)"),
}
_BOUNDS = {
    "greater_than": ("gt", "大於", "greater than"),
    "greater_than_equal": ("ge", "至少", "at least"),
    "less_than": ("lt", "小於", "less than"),
    "less_than_equal": ("le", "至多", "at most"),
    "multiple_of": ("multiple_of", "倍數，基數", "a multiple of"),
}


def first_error(error: ValidationError) -> ErrorDetails:
    """The error to show: a misspelt key before the missing one it was meant to be."""
    details = error.errors(include_url=False)
    return next((d for d in details if d["type"] == "extra_forbidden"), details[0])


def reason(detail: ErrorDetails, config: type[Config]) -> str:
    """Say what is wrong with one value, with the value and what would be right."""
    name = ".".join(str(part) for part in detail["loc"])
    kind, value, context = detail["type"], _short(detail["input"]), detail.get("ctx", {})
    if kind == "extra_forbidden":
        known = _fields_at(config, detail["loc"][:-1])
        hint = nearest(str(detail["loc"][-1]), known) or say(
            zh=f"可用的有 {'、'.join(known)}。", en=f"Known are {', '.join(known)}."
        )
        return say(zh=f"沒有名為 {name!r} 的選項。{hint}", en=f"there is no option {name!r}. {hint}")
    if kind == "missing":
        wanted_input = input_fields(config).get(name)
        if wanted_input is None:
            return say(zh=f"缺少 {name!r}。", en=f"{name!r} is missing.")
        return say(
            zh=f"缺少輸入 {name!r}（{wanted_input.kind}）。請給路徑，或引用前面的階段：${{階段}}。",
            en=f"the input {name!r} (a {wanted_input.kind}) is missing. "
            "Give a path, or an earlier stage as ${stage}.",
        )
    if kind == "value_error":
        message = str(detail["msg"]).removeprefix("Value error, ")
        return f"{name}: {message}" if name else message
    if kind in _BOUNDS:
        key, zh, en = _BOUNDS[kind]
        return say(
            zh=f"{name!r} 是 {value}，應為{zh} {context[key]}。",
            en=f"{name!r} is {value}; it must be {en} {context[key]}.",
        )
    if kind in ("literal_error", "enum"):
        return say(
            zh=f"{name!r} 是 {value}，應為 {context['expected']}。",
            en=f"{name!r} is {value}; it must be {context['expected']}.",
        )
    wanted = _WANTED.get(kind.split("_")[0]) if kind.endswith(("_type", "_parsing", "_from_float")) else None
    if wanted is not None:
        return say(zh=f"{name!r} 是 {value}，應為{wanted[0]}。", en=f"{name!r} is {value}; it must be {wanted[1]}.")
    return say(zh=f"{name!r} 是 {value}：{detail['msg']}。", en=f"{name!r} is {value}: {detail['msg']}.")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _fields_at(config: type[BaseModel], keys: Iterable[Any]) -> list[str]:
    """Names of the options at a place inside a config, through nested configs."""
    model: type[BaseModel] | None = config
    for key in keys:
        if model is None or key not in model.model_fields:
            continue
        model = _model_in(model.model_fields[key].annotation)
    return list(model.model_fields) if model is not None else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in get_args(annotation) if (model := _model_in(part)) is not None), None)
