"""The stage `tokenizer.train`: byte-pair encoding over characters, with bytes for what it has never seen."""

import json
from collections import Counter
from itertools import accumulate
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from wenfang.core.artifact import Summary, check_artifact
from wenfang.core.config import Config, Corpus
from wenfang.core.corpus import read_texts
from wenfang.core.forecast import Forecast
from wenfang.core.language import say
from wenfang.core.report import Reporter

SPECIAL_TOKENS = ("<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + len(BYTES) + 1

# Calls are written as Qwen and Hermes have them. A tool's result begins with two roles, which no text can forge: it is
# not the user's word, and has not a system prompt's authority either.
CHAT_TEMPLATE = (
    "<|bos|>{% if tools %}<|system|><tools>\n"
    "{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}</tools><|end|>{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'tool' %}<|user|><|system|>{% else %}<|{{ message['role'] }}|>{% endif %}"
    "{{ message['content'] or '' }}"
    "{% for call in message['tool_calls'] or [] %}{% set function = call['function'] or call %}"
    "{% if message['content'] or not loop.first %}{{ '\\n' }}{% endif %}"
    '<tool_call>\n{"name": {{ function.name | tojson }}, "arguments": '
    "{% if function['arguments'] is string %}{{ function['arguments'] }}"
    "{% else %}{{ function['arguments'] | tojson }}{% endif %}}\n</tool_call>"
    "{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

HAN = r"\p{Han}"
PIECES = {
    # Every Han character stands alone: one token, one syllable, one tone.
    "characters": rf"{HAN}|\p{{L}}+|\p{{N}}|[^\S\r\n]+|[^\p{{L}}\p{{N}}\s]*[\r\n]+|[^\p{{L}}\p{{N}}\s]+",
    # A run of Han characters may merge into words; punctuation and script changes bound it.
    "words": rf"{HAN}+|\p{{L}}+|\p{{N}}|[^\S\r\n]+|[^\p{{L}}\p{{N}}\s]*[\r\n]+|[^\p{{L}}\p{{N}}\s]+",
}


class TokenizerConfig(Config):
    """Train a byte-pair tokenizer whose every string round-trips exactly."""

    corpus: Corpus
    """The corpus to learn from; only its training split is read."""
    vocab_size: int = 6144
    """Token ids in all: special tokens, 256 bytes, characters and merges."""
    character_coverage: float = Field(default=0.9995, gt=0, le=1)
    """Share of the corpus's characters that become tokens of their own; rarer ones are spelt in bytes."""
    han: Literal["characters", "words"] = "characters"
    """Keep each Han character its own token, or let frequent neighbours merge into words."""

    @model_validator(mode="after")
    def _check_vocabulary(self) -> "TokenizerConfig":
        if self.vocab_size < SMALLEST_VOCABULARY:
            raise ValueError(
                say(
                    zh=f"vocab_size 是 {self.vocab_size}，至少要 {SMALLEST_VOCABULARY}："
                    "256 個位元組、特殊符號與至少一個字",
                    en=f"vocab_size is {self.vocab_size}; it must be at least {SMALLEST_VOCABULARY}: "
                    "256 bytes, the special tokens and one character",
                )
            )
        return self


def forecast(config: TokenizerConfig) -> Forecast:
    """Cost of training on about 15 million characters, measured on two cores."""
    return Forecast(seconds=20, memory_bytes=2 << 30, disk_bytes=4 << 20)


def run(config: TokenizerConfig, out: Path, report: Reporter) -> Summary:
    """Train on the corpus and write a Hugging Face tokenizer folder.

    Raises:
        DataError: the corpus is empty or cannot be read.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from tokenizers import Regex as TokenizersRegex

    check_artifact(config.corpus, "corpus")
    path = config.corpus / "train.parquet"
    split = pre_tokenizers.Split(TokenizersRegex(PIECES[config.han]), behavior="isolated")
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = split
    learned_size = config.vocab_size - len(SPECIAL_TOKENS) - len(BYTES)
    counts: Counter[str] = Counter()
    for batch in read_texts(path, report, say(zh="數字頻", en="counting characters")):
        counts.update("".join(batch))
    size = min(_covering(counts, config.character_coverage), learned_size)
    # The trainer breaks ties between equally rare characters at random; chosen here, every run learns the same.
    alphabet = [c for c, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:size]]
    trainer = trainers.BpeTrainer(
        vocab_size=learned_size, initial_alphabet=alphabet, limit_alphabet=size, min_frequency=2, show_progress=False
    )
    learner.train_from_iterator(read_texts(path, report, say(zh="合併字串", en="learning merges")), trainer)

    # The byte tokens enter the vocabulary, not the special tokens: the text "<0x0A>" must stay six characters.
    learned = json.loads(learner.to_str())["model"]
    pieces = sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    vocab = {piece: id_ for id_, piece in enumerate((*SPECIAL_TOKENS, *BYTES, *pieces))}
    merges = [tuple(merge) for merge in learned["merges"]]
    trained = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, fuse_unk=False))
    trained.pre_tokenizer = split
    trained.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    trained.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    (out / "tokenizer.json").write_text(trained.to_str(pretty=True), encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|bos|>",
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, ensure_ascii=False, indent=2), encoding="utf-8")
    return {"vocab_size": len(vocab), "characters": size, **_compression(out, config.corpus, report)}


def _covering(counts: Counter[str], coverage: float) -> int:
    """How many of the most frequent characters make up `coverage` of the text."""
    wanted = coverage * counts.total()
    running = accumulate(count for _, count in counts.most_common())
    return next(n for n, seen in enumerate(running, start=1) if seen >= wanted)


def _compression(folder: Path, corpus: Path, report: Reporter) -> Summary:
    """Characters per token on the validation split: how much text a token carries."""
    from wenfang.tokenizer.tokenizer import Tokenizer

    tokenizer, characters, tokens = Tokenizer.load(folder), 0, 0
    for texts in read_texts(corpus / "validation.parquet", report, say(zh="量壓縮率", en="measuring compression")):
        characters += sum(map(len, texts))
        tokens += sum(len(ids) for ids in tokenizer.encode_batch(texts))
    return {"characters_per_token": round(characters / max(tokens, 1), 3)}
