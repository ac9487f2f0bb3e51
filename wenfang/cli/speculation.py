"""The options by which `wenfang chat` and `wenfang serve` decode speculatively."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from wenfang.core.errors import InputError
from wenfang.core.language import say

if TYPE_CHECKING:
    from wenfang.engine import Speculation

Draft = Annotated[
    Path | None,
    Parameter(
        help=say(
            zh="用這個較小、詞彙表相同的模型先猜，只為加快；文字不變。",
            en="Let this smaller model with the same vocabulary guess ahead, for speed; the text stays the same.",
        )
    ),
]
LookupTokens = Annotated[
    int | None,
    Parameter(
        help=say(
            zh="從前文查出接下來可能的詞元，一次這麼多個；文字不變。",
            en="Guess this many tokens at once from what followed earlier, for speed; the text stays the same.",
        )
    ),
]
Ahead = Annotated[
    bool,
    Parameter(
        negative="",
        help=say(
            zh="用模型自己預測多個詞元的層來猜；文字不變。",
            en="Let the model's own layers that look ahead guess, for speed; the text stays the same.",
        ),
    ),
]


def speculation(draft: Path | None, lookup: int | None, look_ahead: bool) -> "Speculation | None":
    """Who guesses, if anybody.

    Raises:
        InputError: two were asked for, or a value is out of range.
        ModelError, TokenizerError: the draft model cannot be used.
    """
    from wenfang.engine import DraftModel, LookAhead, Lookup

    asked = {"--draft": draft is not None, "--lookup": lookup is not None, "--look-ahead": look_ahead}
    names = [name for name, given in asked.items() if given]
    if len(names) > 1:
        raise InputError(
            say(zh=f"{names[0]} 與 {names[1]} 只能選一個。", en=f"Choose one of {names[0]} and {names[1]}, not both.")
        )
    if draft is not None:
        from wenfang.studio import find_model

        return DraftModel.load(find_model(draft).model)
    if lookup is not None:
        try:
            return Lookup(lookup)
        except InputError as error:
            raise InputError(f"--lookup: {error}") from None
    return LookAhead() if look_ahead else None
