"""The mixer that a layer's config asks for."""

from torch import nn

from wenfang.model.attention import make_attention
from wenfang.model.config import DecoderConfig
from wenfang.model.mixers.gated_deltanet import GatedDeltaNet
from wenfang.model.mixers.mamba2 import Mamba2
from wenfang.model.mixers.rwkv7 import Rwkv7
from wenfang.model.mixers.ttt import Ttt


def make_mixer(config: DecoderConfig, layer: int) -> nn.Module:
    """A sequence mixer: called with x_BTD, the memory and the rotation of the positions (None without rotary
    embedding), it returns y_BTD."""
    name = config.mixer(layer)
    if name == "mamba2":
        return Mamba2(config.mamba2, dim=config.dim, norm_eps=config.norm_eps, layer=layer)
    if name == "gated_deltanet":
        return GatedDeltaNet(config.gated_deltanet, dim=config.dim, norm_eps=config.norm_eps, layer=layer)
    if name == "rwkv7":
        first = layer == config.mixers.index("rwkv7")
        return Rwkv7(config.rwkv7, dim=config.dim, layer=layer, layers=config.layers, first=first)
    if name == "ttt":
        return Ttt(config.ttt, dim=config.dim, layer=layer)
    return make_attention(config, layer)
