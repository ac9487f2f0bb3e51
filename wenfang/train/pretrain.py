"""The stage `train.pretrain`: a corpus and a tokenizer become a model, or a model learns a further corpus."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from wenfang.core.artifact import Summary, check_artifact
from wenfang.core.errors import InputError
from wenfang.core.language import say
from wenfang.core.report import Reporter
from wenfang.data.chunks import ChunkIndex
from wenfang.model import Decoder, DecoderConfig, load_model, save_model
from wenfang.tokenizer import Tokenizer
from wenfang.train.card import model_card
from wenfang.train.config import PretrainConfig
from wenfang.train.documents import read_rows
from wenfang.train.loop import mean_loss, train
from wenfang.train.meter import bits_of
from wenfang.train.mixture import Mixture, mix
from wenfang.train.objective import Dataset, NextToken, Objective, Rows, Task, activation_dtype, next_token
from wenfang.train.packing import tell_waste
from wenfang.train.placement import choose, placed
from wenfang.train.realm import MarginalLikelihood, continuations
from wenfang.train.retrieval import look_up, open_index, read_pieces, retro_config, with_retrieval
from wenfang.train.vocabulary import NewTokens, adopt_vocabulary


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
    index = None if config.index is None else open_index(config.index, tokenizer)
    task, blind = _task(config, tokenizer, index, out, report)
    summary: Summary = {}
    torch.manual_seed(config.seed)
    if config.model is None:
        model = Decoder(decoder_config(config, tokenizer.vocab_size))
        model.initialise()
    else:
        model, known = load_model(config.model), Tokenizer.load(config.model)
        check_fit(config, model, known)
        summary |= _knowledge(model, known, config, out, report, "before")
        added = adopt_vocabulary(model, known, tokenizer)
        summary["new_tokens"] = len(added)
        if config.new_token_steps and not added:
            raise _nothing_new(config)
        if added:
            summary |= _knowledge(model, tokenizer, config, out, report, "with_new_tokens")
            task = replace(task, new_tokens=NewTokens(added, config.new_token_steps))
    if index is not None and config.retrieval.method == "retro":
        model = with_retrieval(model, retro_config(config.retrieval, index.chunk))
    summary["parameters"] = model.config.parameters
    if isinstance(task.training, Rows | Mixture):
        summary["packing_waste"] = round(task.training.waste, 4)
    summary |= train(model, task, config, out, report, label=say(zh="預訓練", en="pretraining"))
    summary["bits_per_character"] = _bits(float(summary["validation_loss"]), task.validation)
    if index is not None:
        nats = _measure(model, task.measure, blind, config)
        summary["bits_per_character_without_neighbours"] = _bits(nats, blind)
    if config.model is not None:
        summary |= _knowledge(model, tokenizer, config, out, report, "after")
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


def _task(
    config: PretrainConfig, tokenizer: Tokenizer, index: ChunkIndex | None, out: Path, report: Reporter
) -> tuple[Task, Dataset]:
    """What is learned, and the validation data without neighbours."""
    if index is not None:
        return _with_neighbours(config, tokenizer, index, out, report)
    splits = [config.corpus / f"{split}.parquet" for split in ("train", "validation")]
    training, validation = (read_rows(split, tokenizer, config.context, report, out) for split in splits)
    tell_waste(training.packed, report)
    if config.replay is None:
        return next_token(training, validation, config), validation
    check_artifact(config.replay, "corpus")
    old = read_rows(config.replay / "train.parquet", tokenizer, config.context, report, out)
    mixture = mix(training, old, share=config.replay_share, seed=config.seed)
    return next_token(mixture, validation, config), validation


def _with_neighbours(
    config: PretrainConfig, tokenizer: Tokenizer, index: ChunkIndex, out: Path, report: Reporter
) -> tuple[Task, Dataset]:
    """What is learned where neighbours are read, and the validation data without them."""
    count = config.retrieval.neighbours
    pieces = [
        read_pieces(config.corpus / f"{split}.parquet", tokenizer, config.context, report)
        for split in ("train", "validation")
    ]
    if config.retrieval.method == "realm":
        read, held_out = (continuations(side, index, count, report) for side in pieces)
        marginal = MarginalLikelihood(activation_dtype(config))
        return Task(read, held_out, marginal, measure=marginal), held_out.without_documents()
    found, held = (look_up(side, config.context, index, count, report, folder=out) for side in pieces)
    tell_waste(found.packed, report)
    return next_token(found, held, config), held.plain


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


def _nothing_new(config: PretrainConfig) -> InputError:
    name = str(config.tokenizer)
    return InputError(
        say(
            zh=f"{name!r} 沒有模型不認識的 token，new_token_steps={config.new_token_steps} 無事可做。請拿掉它。",
            en=f"{name!r} has no token that the model does not know, so new_token_steps={config.new_token_steps} has "
            "nothing to do. Leave it out.",
        )
    )


def _knowledge(
    model: Decoder,
    tokenizer: Tokenizer,
    config: PretrainConfig,
    out: Path,
    report: Reporter,
    when: Literal["before", "with_new_tokens", "after"],
) -> Summary:
    """Bits per character on the validation data: what was learned, and what of `replay` was forgotten. They compare
    across vocabularies."""
    summary: Summary = {}
    for name, corpus in (("corpus", config.corpus), ("replay", config.replay)):
        if corpus is not None:
            rows = read_rows(corpus / "validation.parquet", tokenizer, config.context, report, out)
            measure = NextToken(activation_dtype(config))
            summary[f"{name}_bits_per_character_{when}"] = _bits(_measure(model, measure, rows, config), rows)
    return summary


def _measure(model: Decoder, measure: Objective, data: Dataset, config: PretrainConfig) -> float:
    """Mean nats on a sample of rows, without dropout."""
    with torch.no_grad(), placed(model, choose(config.device)):
        nats = mean_loss(measure, model.eval(), data, config.batch)
    model.train()
    return nats


def _bits(nats: float, data: Dataset) -> float:
    """Bits per character, rounded for people."""
    return round(bits_of(nats, data)["bits_per_character"], 3)


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
