"""The pre-tokenizers that llama.cpp knows by name, as the regular expressions of the models that brought them.

A text is cut by each expression in turn; matches and what lies between them are pieces. The names are those of
`tokenizer.ggml.pre`; the tests compare each one with llama.cpp's own tokens.
"""

from collections.abc import Mapping
from typing import Any

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = WORDS + r"\p{N}{1,3}" + REST
QWEN2 = WORDS + r"\p{N}" + REST

PRE_TOKENIZERS: dict[str, tuple[str, ...]] = {
    "gpt-2": (GPT2,),
    "olmo": (GPT2,),
    "mpt": (GPT2,),
    "smollm": (r"\p{N}", GPT2),
    "starcoder": (r"\p{N}", GPT2),
    "llama-bpe": (LLAMA3,),
    "dbrx": (LLAMA3,),
    "qwen2": (QWEN2,),
}
IGNORE_MERGES = ("llama-bpe",)
"""Those that take a whole piece as one token if it is one, whatever the merges say."""


def expressions(pre_tokenizer: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    """The expressions that a `tokenizer.json`'s byte-level pre-tokenizer cuts by; None if it does anything else."""
    steps = pre_tokenizer or {}
    found: list[str] = []
    for step in steps.get("pretokenizers", [steps]):
        match step:
            case {"type": "Split", "pattern": {"Regex": str() as regex}, "behavior": "Isolated", "invert": False}:
                found.append(regex)
            case {"type": "Digits", "individual_digits": True}:
                found.append(r"\p{N}")
            case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": bool() as cuts}:
                found += [GPT2] * cuts
            case _:
                return None
    return tuple(found)
