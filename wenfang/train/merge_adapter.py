"""The stage `train.merge-adapter`: a model and a PEFT adapter become one model."""

from pathlib import Path

import torch

from wenfang.core.artifact import Summary
from wenfang.core.forecast import Forecast
from wenfang.core.language import say
from wenfang.core.report import Reporter
from wenfang.model import load_model, save_model
from wenfang.model.peft import WEIGHTS
from wenfang.tokenizer import Tokenizer
from wenfang.train.adapter import LoraLinear, merged
from wenfang.train.card import model_card
from wenfang.train.config import MergeAdapterConfig
from wenfang.train.peft import load_adapter


def run(config: MergeAdapterConfig, out: Path, report: Reporter) -> Summary:
    """Write the model with the adapter merged into its weights.

    Raises:
        InputError, ModelError: the model or the adapter cannot be used, or they do not fit each other.
    """
    report.notice(say(zh="合併轉接器", en="merging the adapter"))
    model, tokenizer = load_model(config.model), Tokenizer.load(config.model)
    load_adapter(model, config.adapter)
    adapted = sum(isinstance(module, LoraLinear) for module in model.modules())
    summary: Summary = {"projections": adapted}
    with merged(model):
        save_model(
            model,
            out,
            tokenizer=config.model,
            bos_id=tokenizer.bos_id,
            end_id=tokenizer.end_id,
            dtype=getattr(torch, config.save_as),
            card=model_card("train.merge-adapter", config, summary, out),
        )
    return summary


def forecast(config: MergeAdapterConfig) -> Forecast:
    """Cost of reading, adding and writing."""
    size = sum(p.stat().st_size for p in (config.model / "model.safetensors", config.adapter / WEIGHTS) if p.is_file())
    return Forecast(seconds=5 + size / 2e8, memory_bytes=int(0.5e9 + 3 * size), disk_bytes=2 * size)
