"""Opening what stands beside a model's weights."""

from pathlib import Path

from wenfang.model import load_config
from wenfang.tokenizer import Tokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder or GGUF file.

    Raises:
        InputError, ModelError, TokenizerError: it is missing, cannot be read, or has more ids than the model knows.
    """
    if folder.is_file():
        from wenfang.model.gguf import load_gguf_tokenizer

        return Tokenizer(*load_gguf_tokenizer(folder))
    return Tokenizer.load(folder, model_vocab_size=load_config(folder).vocab_size)
