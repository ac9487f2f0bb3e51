"""The stage `train.extend-context`: a model learns to read further than it was trained to (YaRN, Peng et al. 2023)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from wenfang.core.artifact import Summary, check_artifact
from wenfang.core.errors import DataError, InputError
from wenfang.core.language import say
from wenfang.core.report import Reporter
from wenfang.model import Decoder, DecoderConfig, load_model, save_model
from wenfang.model.families import family_for
from wenfang.model.parts import RopeConfig, YarnScaling
from wenfang.tokenizer import Tokenizer
from wenfang.train.card import model_card
from wenfang.train.config import ExtendContextConfig
from wenfang.train.documents import TextCount, read_documents
from wenfang.train.loop import mean_loss, train
from wenfang.train.meter import bits_of
from wenfang.train.objective import Batch, NextToken, RowNumbers, Rows, activation_dtype, next_token
from wenfang.train.packing import IGNORED, Document, split_long
from wenfang.train.placement import choose, placed


def run(config: ExtendContextConfig, out: Path, report: Reporter) -> Summary:
    """Scale the rotary embedding, train on rows of the new length and write the model as a Hugging Face folder.

    The summary tells bits per character by position before and after: `…_at_0_128_before` covers positions 0 to 127.

    Raises:
        InputError: an input cannot be used, or the model's positions cannot be extended to `context`.
        DataError: a split of the corpus is empty or shorter than one row.
    """
    check_artifact(config.corpus, "corpus")
    model, tokenizer = load_model(config.model), Tokenizer.load(config.model)
    shape = extended(model.config, config.context)
    training, validation = (
        long_rows(config.corpus / f"{split}.parquet", tokenizer, config.context, report, out)
        for split in ("train", "validation")
    )
    edges = doublings(model.config.context, config.context)
    summary: Summary = by_position(model, validation, edges, config, "before")
    longer = Decoder(shape)
    longer.load_state_dict(model.state_dict())
    torch.manual_seed(config.seed)
    task = next_token(training, validation, config)
    summary |= train(longer, task, config, out, report, label=say(zh="延長上下文", en="extending the context"))
    summary |= by_position(longer, validation, edges, config, "after")
    save_model(
        longer,
        out,
        tokenizer=config.model,
        bos_id=tokenizer.bos_id,
        end_id=tokenizer.end_id,
        dtype=getattr(torch, config.save_as),
        card=model_card("train.extend-context", config, summary, out),
    )
    return summary


def extended(shape: DecoderConfig, context: int) -> DecoderConfig:
    """The architecture with YaRN on each rotary embedding, its factor counted from the context of pretraining.

    Raises:
        InputError: `context` is no longer than the model's, or its positions are not rotary or scaled another way.
        ModelError: no Hugging Face family holds the result.
    """
    if context <= shape.context:
        raise InputError(
            say(
                zh=f"context={context} 不比模型的 {shape.context} 長。請調大。",
                en=f"context={context} is not longer than the model's {shape.context}. Raise it.",
            )
        )
    if shape.absolute_positions or shape.alibi or not any(shape.ropes) or not shape.attention_layers:
        raise InputError(
            say(
                zh="模型的位置不是旋轉編碼（RoPE），YaRN 無法延長。",
                en="The model's positions are not rotary (RoPE), so YaRN cannot extend them.",
            )
        )
    ropes = tuple(rope and _yarn(rope, shape.context, context) for rope in shape.ropes)
    longer = shape.model_copy(update={"context": context, "ropes": ropes})
    family_for(longer)  # Refuse now what could not be written after hours of training.
    return longer


def _yarn(rope: RopeConfig, known: int, context: int) -> RopeConfig:
    if rope.scaling is not None and not isinstance(rope.scaling, YarnScaling):
        raise InputError(
            say(
                zh=f"模型的位置已用 {rope.scaling.type!r} 延長，不能再用 YaRN。請從延長前的模型開始。",
                en=f"The model's positions are scaled by {rope.scaling.type!r} already, so YaRN cannot be used. "
                "Begin with the model before that.",
            )
        )
    original = rope.scaling.original_context if rope.scaling else known
    scaling = YarnScaling(factor=context / original, original_context=original)
    return rope.model_copy(update={"scaling": scaling})


def long_rows(path: Path, tokenizer: Tokenizer, context: int, report: Reporter, folder: Path | None = None) -> Rows:
    """Rows of one document each: the texts one after another, `<|bos|>` text `<|end|>`, which see each other, so that
    far positions are trained where texts are short too; in a file in `folder`.

    Raises:
        DataError: the corpus cannot be read, or all of it does not fill one row.
    """
    count = TextCount()

    def pieces() -> Iterator[Document]:
        rest, first = np.empty(0, np.int32), True
        for text, whole in read_documents(path, tokenizer, report):
            count.add(text, len(whole))
            rest = np.concatenate((rest, whole))
            for piece in split_long((rest, np.broadcast_to(True, len(rest))), context)[:-1]:
                yield piece
                rest, first = rest[context:], False
        if len(rest) == context + 1:
            yield rest, np.broadcast_to(True, len(rest))
        elif first:
            raise _too_short(path, count.tokens, context)

    return count.pack(pieces(), context, folder)


def _too_short(path: Path, tokens: int, context: int) -> DataError:
    return DataError(
        say(
            zh=f"{str(path)!r} 共 {tokens} 個 token，不足一列 context={context}。請用更大的語料，或調小 context。",
            en=f"{str(path)!r} has {tokens} tokens, less than one row of context={context}. Use a larger corpus, "
            "or lower context.",
        )
    )


def doublings(known: int, context: int) -> list[int]:
    """Borders of the ranges that are reported: half the known context, it, twice that, … up to the new one."""
    edges = [0, known // 2, known]
    while edges[-1] * 2 < context:
        edges.append(edges[-1] * 2)
    return [*edges, context]


def by_position(
    model: Decoder, rows: Rows, edges: Iterable[int], config: ExtendContextConfig, when: str
) -> dict[str, int | float | str]:
    """Bits per character of what stands between each two edges, on a sample of rows."""
    measure, summary = NextToken(activation_dtype(config)), dict[str, int | float | str]()
    for start, stop in pairwise(edges):
        with torch.no_grad(), placed(model, choose(config.device)):
            part = _Between(rows.packed, rows.characters_per_token, rows.bytes_per_token, start=start, stop=stop)
            nats = mean_loss(measure, model.eval(), part, config.batch)
        bits = bits_of(nats, rows)["bits_per_character"]
        summary[f"bits_per_character_at_{start}_{stop}_{when}"] = round(bits, 3)
    model.train()
    return summary


@dataclass(frozen=True, kw_only=True)
class _Between(Rows):
    """Rows of which only the positions from `start` to before `stop` count."""

    start: int
    stop: int

    def batch(self, rows: RowNumbers) -> Batch:
        batch = super().batch(rows)
        positions_BT, targets_BT = batch.tensors["positions_BT"], batch.tensors["targets_BT"]
        outside_BT = (positions_BT < self.start) | (positions_BT >= self.stop)
        targets_BT = targets_BT.masked_fill(outside_BT, IGNORED)
        count = int((targets_BT != IGNORED).sum())
        return replace(batch, tensors=batch.tensors | {"targets_BT": targets_BT}, count=count)
