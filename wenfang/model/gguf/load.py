"""A GGUF file as a model: its config, its weights, its tokenizer."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
import torch
from torch import Tensor

from wenfang.model.config import DecoderConfig
from wenfang.model.decoder import Decoder
from wenfang.model.folder import match_weights
from wenfang.model.gguf.architectures import architecture_of
from wenfang.model.gguf.header import GGUFFile, broken
from wenfang.model.gguf.keys import file_values
from wenfang.model.gguf.vocabulary import read_tokenizer


def load_gguf_config(path: Path) -> DecoderConfig:
    """The architecture of a GGUF file, without its weights.

    Raises:
        ModelError: the file is damaged, or its architecture or a setting of it is not supported.
    """
    file = GGUFFile(path)
    return architecture_of(file).family.from_hf(file_values(file))


def open_gguf(path: Path, *, dtype: torch.dtype) -> tuple[Decoder, Iterator[tuple[str, Tensor]]]:
    """A GGUF file as `open_model` opens it. Quantised weights are dequantised.

    Raises:
        ModelError: as `load_gguf_config`, or the weights do not fit.
    """
    file = GGUFFile(path)
    family = architecture_of(file).family
    config = family.from_hf(file_values(file))
    return match_weights(config, family, _Tensors(file, dtype), dtype=dtype)


_LATENT = re.compile(r"(.*)\.attn_([kv])_b\.weight")


class _Tensors:
    """The tensors of a file as a source of weights. What newer DeepSeek files keep as two, keys for the queries' side
    [heads, rank, width] and values [heads, width, rank], is one matrix of both here, head by head, as in older ones."""

    def __init__(self, file: GGUFFile, dtype: torch.dtype) -> None:
        self._file, self._dtype = file, dtype
        self.shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
        self._split = {match[1] for name in file.tensors if (match := _LATENT.fullmatch(name))}
        for block in self._split:
            keys, values = (self.shapes.pop(f"{block}.attn_{letter}_b.weight", ()) for letter in "kv")
            if len(keys) != 3 or len(values) != 3 or keys[0] != values[0] or keys[1] != values[2]:
                raise broken(file.path, f"{block}.attn_k_b {list(keys)}, attn_v_b {list(values)}")
            self.shapes[f"{block}.attn_kv_b.weight"] = (keys[0] * (keys[2] + values[1]), keys[1])

    def source(self, _name: str) -> Path:
        """The file."""
        return self._file.path

    def read(self, name: str) -> Tensor:
        """One tensor, dequantised."""
        block = name.removesuffix(".attn_kv_b.weight")
        if block not in self._split:
            return self._file.read(name, self._dtype)
        keys_HRN, values_HVR = (self._file.read(f"{block}.attn_{letter}_b.weight", self._dtype) for letter in "kv")
        return torch.cat((keys_HRN.mT, values_HVR), 1).flatten(0, 1)


def load_gguf_tokenizer(path: Path) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """The tokenizer of a GGUF file, and what its `tokenizer_config.json` would say.

    Raises:
        ModelError: the vocabulary is damaged or of a kind that cannot be read.
    """
    document, settings = read_tokenizer(GGUFFile(path))
    text = json.dumps(document, ensure_ascii=False)
    del document  # Half a million merges, before the reader takes memory of its own.
    try:
        return tokenizers.Tokenizer.from_str(text), settings
    except Exception as error:  # noqa: BLE001 - the Rust reader raises plain Exception for a bad vocabulary
        raise broken(path, str(error)) from None
