"""How many weights an architecture has, counted on a decoder without memory."""

from functools import lru_cache

import torch

from wenfang.model.config import DecoderConfig
from wenfang.model.decoder import Decoder
from wenfang.model.experts import Experts
from wenfang.model.linear import Linear
from wenfang.model.quantized import Quantization, bits_of, check_quantizable
from wenfang.native.quantized import packed_bytes


@lru_cache(maxsize=32)
def _skeleton(config: DecoderConfig) -> Decoder:
    with torch.device("meta"):
        return Decoder(config)


def parameters(config: DecoderConfig) -> int:
    """All trainable weights; a tied table counts once."""
    return sum(weight.numel() for weight in _skeleton(config).parameters())


def active_parameters(config: DecoderConfig) -> int:
    """Weights that a token meets: of the experts, the chosen ones."""
    return parameters(config) - _idle(_skeleton(config))


def matmul_parameters(config: DecoderConfig) -> int:
    """Weights in a matrix product for each token: the look-up left out, the active experts only, those that read
    neighbours once for each of a neighbour's tokens."""
    model = _skeleton(config)
    matrices = sum(weight.numel() for weight in model.parameters() if weight.ndim >= 2)
    looked_up = 0 if config.tie_embeddings else model.embed_tokens.weight.numel()
    if model.embed_positions is not None:
        looked_up += model.embed_positions.weight.numel()
    return matrices - looked_up - _idle(model) + _read_again(model)


def loaded_bytes(config: DecoderConfig, quantization: Quantization | None) -> int:
    """Memory of the weights as an engine holds them: in fp32, or the projections rounded and the rest in bf16.

    Weights that need fewer bits than `bits_of` says take less.

    Raises:
        ModelError: the model cannot be quantised.
    """
    if quantization is None:
        return parameters(config) * torch.float32.itemsize
    check_quantizable(config)
    model, total = _skeleton(config), 0
    rest = dict(model.named_parameters(remove_duplicate=False))
    if config.tie_embeddings:
        del rest["embed_tokens.weight"]
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            del rest[f"{name}.weight"]
            total += sum(packed_bytes(module.out_features, module.in_features, bits_of(name, quantization)))
    return total + sum(weight.numel() for weight in rest.values()) * torch.bfloat16.itemsize


def _idle(model: Decoder) -> int:
    return sum(module.idle_parameters for module in model.modules() if isinstance(module, Experts))


def _read_again(model: Decoder) -> int:
    """What the encoder of neighbours and their keys and values add beyond once: a chunk's neighbours have together
    2 · neighbours tokens for each of its own."""
    if model.config.retro is None:
        return 0
    reading = (".cross.encoder.", ".cross.attention.k_proj.", ".cross.attention.v_proj.")
    weights = sum(w.numel() for name, w in model.named_parameters() if w.ndim >= 2 and any(p in name for p in reading))
    return weights * (2 * model.config.retro.neighbours - 1)
