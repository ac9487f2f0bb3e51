"""A Hugging Face folder as one GGUF file that llama.cpp runs: weights, tokenizer, chat template and what it says
of itself."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from gguf.quants import quant_shape_to_byte_shape, quantize
from numpy.typing import NDArray
from torch import Tensor

from wenfang.core.chat_template import read_chat_template
from wenfang.core.errors import ModelError
from wenfang.core.language import say
from wenfang.model.families import family_of
from wenfang.model.folder import load_model, read_json, stored_tensors
from wenfang.model.gguf.architectures import architecture_for
from wenfang.model.gguf.keys import config_keys
from wenfang.model.gguf.rope import rope_tensors
from wenfang.model.gguf.tokens import rebuilt_alike, vocabulary_of
from wenfang.model.gguf.vocabulary import Vocabulary

GGUFDtype = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]
FILE_TYPES = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
}
BLOCK = 32
"""Numbers that Q8_0 and Q4_0 quantise together; rows of another length stay in 16 bits."""
LARGEST_F16 = 65504.0
IN_FULL = re.compile(r"(?<!\.weight)$|position_embd|ffn_gate_inp|ssm_(conv1d|norm)|time_mix_(lerp|[wavg][12])")
"""Matrices that llama.cpp adds or multiplies only in fp32."""
NUMPY: dict[GGMLQuantizationType, type[np.generic]] = {
    GGMLQuantizationType.F32: np.float32,
    GGMLQuantizationType.F16: np.float16,
    GGMLQuantizationType.BF16: np.int16,
}
SAMPLING = {"temperature": "temp", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p"}


def export_gguf(folder: Path, out: Path, *, dtype: GGUFDtype) -> None:
    """Write the model of `folder` to the file `out`, its matrices in `dtype`, norms and biases in fp32.

    With `q4_0` the output projection (and an embedding that doubles as one) is kept in Q8_0: it is the matrix that
    suffers most, and one of 4 bits costs more in quality than it saves.

    Raises:
        ModelError: the folder cannot be read, or llama.cpp has no architecture or tokenizer that says the same.
    """
    model = load_model(folder)
    values = read_json(folder / "config.json")
    architecture = architecture_for(family_of(values).model_type)
    keys = config_keys(architecture, model.config)
    document = read_json(folder / "tokenizer.json")
    vocabulary = _padded(vocabulary_of(document), model.config.vocab_size)
    tensors = stored_tensors(model, architecture.family)
    tensors |= {copy: tensors[original] for copy, original in architecture.copies.items()}
    tensors |= rope_tensors(model.config)
    kinds = {name: _kind(name, tensor, dtype, tied="output.weight" not in tensors) for name, tensor in tensors.items()}

    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    writer = GGUFWriter(partial, architecture.name)
    _describe(writer, folder, model.config.parameters, FILE_TYPES[dtype])
    for key, value in keys.items():
        _add_key(writer, key, value)
    _add_tokenizer(writer, vocabulary, folder, document)
    for name, tensor in tensors.items():
        kind = kinds[name]
        shape = tuple(tensor.shape) if kind in NUMPY else quant_shape_to_byte_shape(tuple(tensor.shape), kind)
        storage = np.dtype(NUMPY.get(kind, np.uint8))
        size = int(np.prod(shape)) * storage.itemsize
        writer.add_tensor_info(name, shape, storage, size, raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in tensors.items():
            writer.write_tensor_data(_encoded(name, tensor.detach().float(), kinds[name]))
        writer.close()
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


def _add_key(writer: GGUFWriter, key: str, value: int | float | bool | str) -> None:
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, value)


def _kind(name: str, tensor: Tensor, dtype: GGUFDtype, *, tied: bool) -> GGMLQuantizationType:
    """The format one tensor is stored in."""
    if tensor.ndim == 1 or dtype == "f32" or IN_FULL.search(name):
        return GGMLQuantizationType.F32
    if dtype in ("q8_0", "q4_0") and tensor.shape[-1] % BLOCK:
        return GGMLQuantizationType.F16
    output = "token_embd.weight" if tied else "output.weight"
    return GGMLQuantizationType[("q8_0" if dtype == "q4_0" and name == output else dtype).upper()]


def _encoded(name: str, weight: Tensor, kind: GGMLQuantizationType) -> NDArray[Any]:
    """The bytes of one fp32 tensor in `kind`."""
    weight = weight.contiguous()
    match kind:
        case GGMLQuantizationType.F32:
            return weight.numpy()
        case GGMLQuantizationType.F16:
            if weight.numel() and float(weight.abs().max()) > LARGEST_F16:
                raise ModelError(
                    say(
                        zh=f"{name} 的值超過 16 位元浮點的範圍（{LARGEST_F16:g}）。請改用 bf16。",
                        en=f"{name} holds numbers beyond the range of f16 ({LARGEST_F16:g}). Use bf16.",
                    )
                )
            return weight.half().numpy()
        case GGMLQuantizationType.BF16:
            return weight.bfloat16().view(torch.int16).numpy()
        case _:
            return quantize(weight.numpy(), kind)


def _describe(writer: GGUFWriter, folder: Path, parameters: int, file_type: LlamaFileType) -> None:
    """General metadata: from the model card's front matter and the generation config where they say it."""
    writer.add_type("model")
    card = _front_matter(folder / "README.md")
    writer.add_name(str(card.get("model_name") or folder.resolve().name))
    writer.add_size_label(f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.0f}M")
    if license_ := card.get("license"):
        writer.add_license(str(license_))
    if languages := card.get("language"):
        writer.add_languages([str(item) for item in (languages if isinstance(languages, list) else [languages])])
    writer.add_file_type(int(file_type))
    writer.add_quantization_version(GGML_QUANT_VERSION)
    generation = read_json(folder / "generation_config.json") if (folder / "generation_config.json").is_file() else {}
    for field, key in SAMPLING.items():
        value = generation.get(field)
        if isinstance(value, int) and field == "top_k":
            writer.add_sampling_top_k(value)
        elif isinstance(value, int | float):
            writer.add_float32(f"general.sampling.{key}", float(value))


def _add_tokenizer(writer: GGUFWriter, vocabulary: Vocabulary, folder: Path, document: Mapping[str, Any]) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre or "default")
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types([int(kind) for kind in vocabulary.types])
    if vocabulary.model == "gpt2":
        writer.add_token_merges(list(vocabulary.merges))
    else:
        writer.add_token_scores(list(vocabulary.scores))
        writer.add_add_space_prefix(vocabulary.space_prefix)
        if not rebuilt_alike(document, vocabulary):
            writer.add_string("tokenizer.huggingface.json", json.dumps(document, ensure_ascii=False))
    settings = read_json(folder / "tokenizer_config.json")
    ids = {token: id_ for id_, token in enumerate(vocabulary.tokens)}
    add = {
        "bos_token": writer.add_bos_token_id,
        "eos_token": writer.add_eos_token_id,
        "pad_token": writer.add_pad_token_id,
        "unk_token": writer.add_unk_token_id,
    }
    for field, write in add.items():
        token = settings.get(field)
        token = token.get("content") if isinstance(token, dict) else token
        if token in ids:
            write(ids[token])
    writer.add_add_bos_token(settings.get("add_bos_token") is True or '"SpecialToken"' in json.dumps(_before(document)))
    writer.add_add_eos_token(False)
    if template := read_chat_template(folder, settings):
        writer.add_chat_template(template)


def _before(document: Mapping[str, Any]) -> list[Any]:
    """What a tokenizer's template puts before a text."""
    processor = document.get("post_processor") or {}
    return [piece for piece in processor.get("single", ())[:1] if "Sequence" not in piece]


def _padded(vocabulary: Vocabulary, size: int) -> Vocabulary:
    """The vocabulary with a placeholder for each row of the embedding that no token uses."""
    missing = range(len(vocabulary.tokens), size)
    return replace(
        vocabulary,
        tokens=[*vocabulary.tokens, *(f"[PAD{id_}]" for id_ in missing)],
        types=[*vocabulary.types, *(TokenType.UNUSED for _ in missing)],
        scores=[*vocabulary.scores, *(0.0 for _ in missing if vocabulary.scores)],
    )


def _front_matter(path: Path) -> dict[str, Any]:
    """The YAML block at the head of a model card; empty where there is none."""
    if not path.is_file():
        return {}
    match = re.match(r"---\n(.*?)\n---\n", path.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    try:
        values = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError:  # A card is for people; one that is no YAML says nothing here.
        return {}
    return values if isinstance(values, dict) else {}
