"""Greedy text of hybrids through the engine's slots against their parallel form without any cache."""

from pathlib import Path

import pytest
import torch

from wenfang.engine import Engine, SamplingParams
from wenfang.model import Decoder, DecoderConfig
from wenfang.model.memory import Memory
from wenfang.tokenizer import Tokenizer


@pytest.mark.parametrize(
    "mixers",
    [("mamba2", "mamba2", "mamba2", "attention"), ("gated_deltanet", "attention"), ("rwkv7",), ("ttt",)],
    ids=lambda mixers: "-".join(mixers),
)
def test_greedy_generation_equals_the_parallel_form(mixers: tuple[str, ...], tokenizer_folder: Path) -> None:
    torch.manual_seed(3)
    tokenizer = Tokenizer.load(tokenizer_folder)
    small = {"heads": 2, "head_dim": 16}
    config = DecoderConfig(
        vocab_size=tokenizer.vocab_size, dim=32, layers=4, heads=4, kv_heads=2, head_dim=8, hidden=48, context=64,
        mixers=mixers, token_shift="rwkv7" in mixers, mamba2=small, rwkv7=small, ttt=small,
    )  # fmt: skip
    model = Decoder(config)
    model.initialise()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    engine = Engine(model, tokenizer, name="hybrid", max_batch=3)
    prompts = [tokenizer.encode(text) for text in ("白日", "黃河入海流", "欲窮千里目，更上", "春", "明月松間照")]
    completions = engine.generate(prompts, SamplingParams(temperature=0, max_tokens=20))
    engine.close()
    assert sum(len(completion.token_ids) for completion in completions) > 60
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = torch.tensor([prompt + completion.token_ids])
        with torch.inference_mode():
            logits = model(ids, torch.arange(ids.shape[1])[None], Memory())[0, len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == completion.token_ids
