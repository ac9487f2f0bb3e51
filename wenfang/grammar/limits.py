"""How much work a grammar may cause, each step and all in all."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLParserLimits

TRIAL_CPU_S = 3
"""Processor time for judging a grammar."""

VERDICT_CPU_S = 10
"""Processor time for reading a grammar a second time, or a text by it: `lark` is written in Python, and takes 3 s for
5,000 rules alone."""

TRIAL_S = 60.0
"""The same on the clock, for a machine that is busy."""

TRIAL_MEMORY_BYTES = 4 << 30
"""Address space of the process that judges; most of it is never touched."""

STACK_BYTES = 64 << 20
"""For compiling, which recurses as deep as rules refer to one another. A trial has half of it, so that whatever
passes there cannot overflow later."""


def parser_limits() -> "LLParserLimits":
    """Budgets of llguidance: a step's lexer and parser together stay under about 10 ms in the worst case."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        max_items_in_row=20_000,
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=100_000,
        step_max_items=50_000,
        max_lexer_states=100_000,
        max_grammar_size=500_000,
        verbose_errors=False,
    )
