"""model: the one decoder definition, and its Hugging Face folder in and out.

The same `Decoder` is trained, evaluated and served. Masks, caches and recurrent states belong to the caller's `Memory`.
May import `core` only.
"""

from wenfang.model.config import DecoderConfig
from wenfang.model.decoder import Decoder
from wenfang.model.folder import load_config, load_model, save_model

__all__ = ["Decoder", "DecoderConfig", "load_config", "load_model", "save_model"]
