"""The option by which `wenfang chat` and `wenfang serve` quantise a model."""

from typing import Annotated, Literal

from cyclopts import Parameter

from wenfang.core.language import say

Quantize = Annotated[
    Literal["int8", "int4"] | None,
    Parameter(
        help=say(
            zh="把權重量化成 8 或 4 位元：省記憶體，寫得快；int4 最小，品質稍減。",
            en="Round the weights to 8 or 4 bits: less memory, faster writing; int4 is smallest and loses a little.",
        )
    ),
]
