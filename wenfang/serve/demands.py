"""What a request with tools demands of its answer: calls, a form, or a choice between the two."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wenfang.core.errors import InputError
from wenfang.serve.errors import ApiError, wrong
from wenfang.serve.forms import ResponseFormat, ToolChoice
from wenfang.serve.toolcalls import ToolFormat

if TYPE_CHECKING:
    from wenfang.grammar import Grammar


@dataclass(frozen=True)
class Demands:
    """What a request with tools asks of its answer's form.

    Args:
        tools: those that may be called, as chat templates expect them.
        strict: of each, whether its calls are held to its schema even where none is forced.
        choice: whether and which must be called.
        several: whether more than one may be.
        form: what the text must be.
        param: where the request holds that form.
    """

    tools: Sequence[dict[str, Any]]
    strict: Sequence[bool]
    choice: ToolChoice
    several: bool = True
    form: ResponseFormat | None = None
    param: str = "response_format"

    def check(self) -> None:
        """Refuse a forced call without a tool, or beside a form.

        Raises:
            ApiError: by the parameter that is too much.
        """
        if self._forced and self.form is not None and self.form.type != "text":
            raise wrong(self.param, zh="不能與強制的工具呼叫一起使用", en="it excludes a forced tool call")
        if self._forced and not self.tools:
            raise wrong("tool_choice", zh="沒有 'tools' 可呼叫", en="there are no 'tools' to call")

    def grammar(self, marks: ToolFormat | None) -> "Grammar | None":
        """The same for the engine; None where nothing holds the answer to a form.

        Args:
            marks: how the model writes calls, if it may.

        Raises:
            ApiError: the chosen tool is not among them, a schema cannot be used, or the model could not choose between
                a call and the form.
        """
        from wenfang.grammar import ToolCalls

        demanded = None if self.form is None else self.form.grammar(self.param)
        if marks is None or not (self._forced or any(self.strict) or demanded):
            return demanded
        held = [self._forced or one for one in self.strict]
        functions = [{"parameters": {}, **tool["function"]} for tool in self.tools]
        functions = [one if hold else {**one, "parameters": {}} for one, hold in zip(functions, held, strict=True)]
        if not isinstance(self.choice, str):
            functions = [function for function in functions if function["name"] == self.choice.called]
        if not functions:
            raise wrong("tool_choice", zh="'tools' 裡沒有這個工具", en="there is no such tool in 'tools'")
        schemas = tuple((f["name"], json.dumps(f["parameters"], ensure_ascii=False)) for f in functions)
        try:
            return ToolCalls(
                schemas,
                marks.opening,
                marks.closing,
                marks.arguments_key,
                several=self.several and isinstance(self.choice, str),
                free=not self._forced and demanded is None,
                otherwise=None if demanded is None else self._schema(demanded),
            )
        except InputError as error:
            raise ApiError(str(error), param="tools", code="invalid_value") from None

    @property
    def _forced(self) -> bool:
        return self.choice not in ("none", "auto")

    def _schema(self, demanded: "Grammar") -> str:
        """The form as a schema: what may be written where no tool is called."""
        from wenfang.grammar import JsonObject, JsonSchema

        if isinstance(demanded, JsonSchema):
            return demanded.schema
        if isinstance(demanded, JsonObject):
            return JsonObject.SCHEMA
        raise wrong(
            self.param,
            zh=f"{demanded.kind!r} 不能與 'tools' 一起使用，只有 JSON 可以",
            en=f"{demanded.kind!r} cannot stand beside 'tools'; only JSON can",
        )


def held_by(asked: object) -> str:
    """The parameter by which a request holds its answer to a form: the answer's own, or else its tools."""
    forms = {name: getattr(asked, name, None) for name in ("response_format", "structured_outputs")}
    forms["text.format"] = getattr(getattr(asked, "text", None), "format", None)
    given = (name for name, form in forms.items() if form is not None and getattr(form, "type", "") != "text")
    return next(given, "tools")
