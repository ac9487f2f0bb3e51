"""tokenizer: text to token ids and back, exactly, with the chat format that training and serving share.

Trains with Hugging Face `tokenizers` and keeps a Hugging Face folder (`tokenizer.json`,
`tokenizer_config.json`). May import `core` and `text` only.
"""

from wenfang.tokenizer.tokenizer import Message, Tokenizer

__all__ = ["Message", "Tokenizer"]
