"""The stage `train.pretrain`: a corpus and a tokenizer become a model, or a model learns a further corpus."""

import math
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from wenfang.core.artifact import Summary, check_artifact
from wenfang.core.corpus import read_texts
from wenfang.core.errors import InputError
from wenfang.core.language import say
from wenfang.core.report import Reporter
from wenfang.model import Decoder, DecoderConfig, load_model, save_model
from wenfang.tokenizer import Tokenizer
from wenfang.train.card import model_card
from wenfang.train.config import PretrainConfig
from wenfang.train.loop import mean_loss, train
from wenfang.train.objective import NextToken, Rows, activation_dtype, next_token
from wenfang.train.packing import IGNORED, Document, pack, split_long
from wenfang.train.vocabulary import adopt_vocabulary


def run(config: PretrainConfig, out: Path, report: Reporter) -> Summary:
    """Train a decoder, fresh or continued, and write it as a Hugging Face folder.

    Raises:
        InputError: an input is missing, of another kind or damaged, or the context exceeds the model's.
        DataError: a split of a corpus is empty.
    """
    check_artifact(config.corpus, "corpus")
    vocabulary = config.tokenizer or config.model
    assert vocabulary is not None  # The config has seen to it.
    tokenizer = Tokenizer.load(vocabulary)
    training = _rows(config.corpus / "train.parquet", tokenizer, config, report)
    validation = _rows(config.corpus / "validation.parquet", tokenizer, config, report)
    if config.replay is not None:
        check_artifact(config.replay, "corpus")
        old = _rows(config.replay / "train.parquet", tokenizer, config, report)
        training = mix(training, old, share=config.replay_share, seed=config.seed)
    summary: Summary = {}
    torch.manual_seed(config.seed)
    if config.model is None:
        model = Decoder(decoder_config(config, tokenizer.vocab_size))
        model.initialise()
    else:
        model, known = load_model(config.model), Tokenizer.load(config.model)
        check_fit(config, model, known)
        summary |= _knowledge(model, known, config, report, "before")
        summary["new_tokens"] = adopt_vocabulary(model, known, tokenizer)
    summary["parameters"] = model.config.parameters
    task, label = next_token(training, validation, config), say(zh="預訓練", en="pretraining")
    summary |= train(model, task, config, out, report, label=label)
    summary["bits_per_character"] = round(_bits(float(summary["validation_loss"]), validation), 3)
    if config.model is not None:
        summary |= _knowledge(model, tokenizer, config, report, "after")
    save_model(
        model,
        out,
        tokenizer=vocabulary,
        bos_id=tokenizer.bos_id,
        end_id=tokenizer.end_id,
        dtype=getattr(torch, config.save_as),
        card=model_card("train.pretrain", config, summary, out),
    )
    return summary


def mix(new: Rows, old: Rows, *, share: float, seed: int) -> Rows:
    """`new` with as many rows of `old` that they make up `share`; drawn without repetition while there are any left."""
    wanted = max(round(len(new) * share / (1 - share)), 1)
    drawn = np.concatenate(
        [np.random.default_rng((seed, turn)).permutation(len(old)) for turn in range(-(-wanted // len(old)))]
    )
    packed = old.packed.take(drawn[:wanted])
    tokens_new, tokens_old = ((p.targets_NT != IGNORED).sum() for p in (new.packed, packed))
    characters = new.characters_per_token * tokens_new + old.characters_per_token * tokens_old
    return Rows(new.packed.joined(packed), float(characters / (tokens_new + tokens_old)))


def check_fit(config: PretrainConfig, model: Decoder, tokenizer: Tokenizer) -> None:
    """Refuse what a model that exists cannot take up.

    Raises:
        InputError: the context exceeds the model's, or its own tokenizer has more tokens than it has embeddings.
    """
    if config.context > model.config.context:
        raise InputError(
            say(
                zh=f"context={config.context} 超過模型的 {model.config.context}。請調小。",
                en=f"context={config.context} exceeds the model's {model.config.context}. Lower it.",
            )
        )
    if tokenizer.vocab_size > model.config.vocab_size:
        raise InputError(
            say(
                zh=f"{str(config.model)!r} 的分詞器有 {tokenizer.vocab_size} 個 token，模型只有 "
                f"{model.config.vocab_size} 個；其中之一屬於別的模型。",
                en=f"{str(config.model)!r}: its tokenizer has {tokenizer.vocab_size} tokens, the model only "
                f"{model.config.vocab_size}. One of them is another model's.",
            )
        )


def _knowledge(
    model: Decoder, tokenizer: Tokenizer, config: PretrainConfig, report: Reporter, when: Literal["before", "after"]
) -> Summary:
    """Bits per character on the validation data: what was learned, and what of `replay` was forgotten. They compare
    across vocabularies."""
    summary: Summary = {}
    for name, corpus in (("corpus", config.corpus), ("replay", config.replay)):
        if corpus is not None:
            rows = _rows(corpus / "validation.parquet", tokenizer, config, report)
            measure = NextToken(activation_dtype(config))
            with torch.no_grad():
                nats = mean_loss(measure, model.eval(), rows, config.batch)
            summary[f"{name}_bits_per_character_{when}"] = round(_bits(nats, rows), 3)
    model.train()
    return summary


def _bits(nats: float, rows: Rows) -> float:
    return nats / math.log(2) / rows.characters_per_token


def decoder_config(config: PretrainConfig, vocab_size: int) -> DecoderConfig:
    """The architecture a pretraining config asks for."""
    return DecoderConfig(
        vocab_size=vocab_size,
        dim=config.dim,
        layers=config.layers,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        hidden=config.hidden,
        context=config.context,
        tie_embeddings=config.tie_embeddings,
    )


def _rows(path: Path, tokenizer: Tokenizer, config: PretrainConfig, report: Reporter) -> Rows:
    """Tokenise and pack one split: `<|bos|>` text `<|end|>`, longer documents cut into rows."""
    characters, documents = 0, list[Document]()
    for texts in read_texts(path, report, say(zh=f"編碼 {path.stem}", en=f"encoding {path.stem}")):
        characters += sum(map(len, texts))
        for ids in tokenizer.encode_batch(texts):
            whole = [tokenizer.bos_id, *ids, tokenizer.end_id]
            documents += split_long((whole, [True] * len(whole)), config.context)
    tokens = sum(len(ids) - 1 for ids, _ in documents)
    return Rows(pack(documents, config.context), characters / tokens)
