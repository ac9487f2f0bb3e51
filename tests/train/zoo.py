"""One decoder of each kind, each way of adapting one, and each optimiser, small."""

from torch import Tensor

from wenfang.model import DecoderConfig
from wenfang.model.mixers.config import Rwkv7Config
from wenfang.model.parts import MlaConfig, MoeConfig, RetroConfig
from wenfang.train.config import AdapterConfig

SHAPE = {"dim": 32, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 16, "hidden": 24, "context": 16}
RWKV7 = Rwkv7Config(heads=2, head_dim=16, decay_rank=6, rate_rank=5, value_rank=4, gate_rank=7)
DECODERS = {
    "plain": {},
    "tied": {"tie_embeddings": True, "norm": "layer", "absolute_positions": "learned", "ropes": (None,)},
    "alibi": {"alibi": True, "ropes": (None,)},
    "windows": {"windows": (4, None), "attention_softcap": 20.0, "logit_softcap": 30.0},
    "sinks": {"attention_sinks": True, "attention_gate": True},
    "experts": {"moe": MoeConfig(experts=4, active=2, hidden=16, balance="loss")},
    "balanced": {"moe": MoeConfig(experts=4, active=2, hidden=16, balance="bias")},
    "latent": {"mla": MlaConfig(kv_rank=16, rope_dim=8, value_dim=16), "kv_heads": 2},
    "ahead": {"ahead": 1},
    "mamba2": {"mixers": "mamba2", "ropes": (None,)},
    "gated_deltanet": {"mixers": "gated_deltanet", "ropes": (None,)},
    "rwkv7": {"mixers": "rwkv7", "rwkv7": RWKV7, "ropes": (None,)},
    "ttt": {"mixers": "ttt", "ropes": (None,)},
    "retro": {"retro": RetroConfig(chunk=8)},
}
OPTIMIZERS = ("muon", "adamw", "adam8bit", "lion", "galore")
ADAPTERS = [
    AdapterConfig(method=method, base=base, rank=4) for method in ("lora", "dora") for base in ("full", "int8", "nf4")
]


def neighbours(config: DecoderConfig, ids_BT: Tensor) -> Tensor | None:
    """Neighbours of every chunk, for a decoder that reads them."""
    B, T = ids_BT.shape
    return None if config.retro is None else ids_BT.new_zeros(B, T // config.retro.chunk, *config.retro.shape)
