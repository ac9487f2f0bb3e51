"""A tiny random model as a folder: it writes nonsense, which is judged like any poem."""

from pathlib import Path

import pytest
import torch

from wenfang.model import Decoder, DecoderConfig, save_model
from wenfang.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def model_folder(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)
    tokenizer = Tokenizer.load(tokenizer_folder)
    model = Decoder(
        DecoderConfig(
            vocab_size=tokenizer.vocab_size, dim=32, layers=2, heads=4, kv_heads=2, head_dim=8, hidden=48, context=256
        )
    )
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, 0.3) if weight.ndim == 2 else weight.uniform_(0.5, 1.5)
    folder = tmp_path_factory.mktemp("models") / "random"
    folder.mkdir()
    save_model(model, folder, tokenizer=tokenizer_folder, bos_id=tokenizer.bos_id, end_id=tokenizer.end_id, card="")
    return folder
