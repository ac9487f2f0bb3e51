"""Opening what stands beside a model's weights."""

from pathlib import Path

from wenfang.tokenizer import Tokenizer


def load_tokenizer(folder: Path, *, model_vocab_size: int) -> Tokenizer:
    """The tokenizer of a model folder or GGUF file.

    Args:
        model_vocab_size: how many token ids the model knows; a GGUF file has as many.

    Raises:
        ModelError, TokenizerError: it is missing or cannot be read.
    """
    if folder.is_file():
        from wenfang.model.gguf import load_gguf_tokenizer

        return Tokenizer(*load_gguf_tokenizer(folder))
    return Tokenizer.load(folder, model_vocab_size=model_vocab_size)
