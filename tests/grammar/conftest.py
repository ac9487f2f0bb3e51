"""Two kinds of tokenizers, and grammars compiled for them."""

from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from wenfang.grammar import GrammarCompiler
from wenfang.tokenizer import Tokenizer

TEXTS = [
    "春眠不覺曉，處處聞啼鳥。",
    '{"name": "李白", "age": 3.14}',
    "the quick brown fox [1, 2] \\ \n\t",
    "夜來風雨聲",
]


def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3, Qwen and SmolLM2 have it."""
    rust = tokenizers.Tokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=alphabet, special_tokens=["<|end|>", "<|im_start|>"], show_progress=False
    )
    rust.train_from_iterator(TEXTS * 3, trainer)
    return Tokenizer(rust, {"eos_token": "<|end|>"})


@pytest.fixture(scope="session", params=["byte fallback", "byte level"])
def tokenizer(request: pytest.FixtureRequest, tokenizer_folder: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_folder) if request.param == "byte fallback" else byte_level()


@pytest.fixture(scope="session")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, tokenizer.vocab_size + 7)  # Models often know more ids than the tokenizer has.
