"""The stage `train.pretrain`: a corpus and a tokenizer become a model."""

from pathlib import Path

import torch

from wenfang.core.artifact import Summary, check_artifact
from wenfang.core.corpus import read_texts
from wenfang.core.language import say
from wenfang.core.report import Reporter
from wenfang.model import Decoder, DecoderConfig, save_model
from wenfang.tokenizer import Tokenizer
from wenfang.train.card import model_card
from wenfang.train.config import PretrainConfig
from wenfang.train.loop import train
from wenfang.train.objective import Rows, next_token
from wenfang.train.packing import Document, pack, split_long


def run(config: PretrainConfig, out: Path, report: Reporter) -> Summary:
    """Train a decoder from scratch and write it as a Hugging Face folder.

    Raises:
        InputError: an input is missing, of another kind or damaged.
        DataError: a split of the corpus is empty.
    """
    check_artifact(config.corpus, "corpus")
    check_artifact(config.tokenizer, "tokenizer")
    tokenizer = Tokenizer.load(config.tokenizer)
    shape = decoder_config(config, tokenizer.vocab_size)
    training = _rows(config.corpus / "train.parquet", tokenizer, config.context, report)
    validation = _rows(config.corpus / "validation.parquet", tokenizer, config.context, report)
    task = next_token(training, validation, config)
    torch.manual_seed(config.seed)
    model = Decoder(shape)
    model.initialise()
    summary: Summary = {"parameters": shape.parameters}
    summary |= train(model, task, config, out, report, label=say(zh="預訓練", en="pretraining"))
    summary["bits_per_character"] = round(
        float(summary["validation_loss"]) / 0.6931471805599453 / validation.characters_per_token, 3
    )
    save_model(
        model,
        out,
        tokenizer=config.tokenizer,
        bos_id=tokenizer.bos_id,
        end_id=tokenizer.end_id,
        dtype=getattr(torch, config.save_as),
        card=model_card("train.pretrain", config, summary),
    )
    return summary


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


def _rows(path: Path, tokenizer: Tokenizer, context: int, report: Reporter) -> Rows:
    """Tokenise and pack one split: `<|bos|>` text `<|end|>`, longer documents cut into rows."""
    characters, documents = 0, list[Document]()
    for texts in read_texts(path, report, say(zh=f"編碼 {path.stem}", en=f"encoding {path.stem}")):
        characters += sum(map(len, texts))
        for ids in tokenizer.encode_batch(texts):
            whole = [tokenizer.bos_id, *ids, tokenizer.end_id]
            documents += split_long((whole, [True] * len(whole)), context)
    tokens = sum(len(ids) - 1 for ids, _ in documents)
    return Rows(pack(documents, context), characters / tokens)
