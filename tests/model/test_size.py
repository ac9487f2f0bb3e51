"""What weights take in memory, counted without memory, against the weights themselves."""

from pathlib import Path

import pytest
import torch

from wenfang.core.errors import ModelError
from wenfang.model import Decoder, DecoderConfig, load_config, load_model
from wenfang.model.parts import MoeConfig
from wenfang.model.quantized import Quantization, quantize
from wenfang.model.size import loaded_bytes

POET = Path(__file__).parents[2] / "models" / "poet"
ODD = DecoderConfig(vocab_size=77, dim=48, layers=2, heads=3, kv_heads=1, head_dim=16, hidden=72, qkv_bias=True)


def held(model: Decoder) -> int:
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensors.values())


@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_count_is_what_the_tensors_hold(quantization: Quantization | None, tied: bool) -> None:
    config = ODD.model_copy(update={"tie_embeddings": tied})
    model = Decoder(config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight)
    if quantization is not None:
        quantize(model, quantization)
    assert loaded_bytes(config, quantization) == held(model)


def test_a_real_model_in_bf16_takes_twice_its_file() -> None:
    counted = loaded_bytes(load_config(POET), None)
    assert counted == held(load_model(POET))
    assert counted == pytest.approx(2 * (POET / "model.safetensors").stat().st_size, rel=0.01)


def test_what_cannot_be_quantised_is_refused_unread() -> None:
    config = ODD.model_copy(update={"moe": MoeConfig(experts=2, active=1, hidden=16)})
    with pytest.raises(ModelError, match="experts"):
        loaded_bytes(config, "int8")
