"""grammar: constraints on what a model writes — JSON Schema, regular expressions, Lark grammars, choices, tool calls.

A grammar is judged in a process of its own, compiled for a tokenizer, and then says which tokens may come next. Knows
nothing of models or torch; may import `core` alone.
"""

from wenfang.grammar.base import Grammar
from wenfang.grammar.compiler import GrammarCompiler, Vocabulary
from wenfang.grammar.kinds import JsonObject, JsonSchema, ToolCalls
from wenfang.grammar.matcher import Matcher, fill_masks
from wenfang.grammar.notation import Choice, Lark, Regex
from wenfang.grammar.validation import BrokenPromise

__all__ = [
    "BrokenPromise",
    "Choice",
    "Grammar",
    "GrammarCompiler",
    "JsonObject",
    "JsonSchema",
    "Lark",
    "Matcher",
    "Regex",
    "ToolCalls",
    "Vocabulary",
    "fill_masks",
]
