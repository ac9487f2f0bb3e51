"""A model as a plain Hugging Face folder: written so that `transformers` opens it, read strictly."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wenfang.core.artifact import check_artifact
from wenfang.core.chat_template import TEMPLATE_FILE
from wenfang.core.errors import ModelError
from wenfang.core.language import say
from wenfang.model.config import DecoderConfig
from wenfang.model.decoder import Decoder
from wenfang.model.families import Family, family_for, family_of
from wenfang.model.families.tensor_map import TensorMap
from wenfang.model.weights import SafetensorsFolder, TensorSource, check_tensors, read_tensor, save_weights

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
MAX_SHARD_BYTES = 5 * 10**9
"""Size above which weights are split, as file systems and downloads prefer."""


def save_model(
    model: Decoder,
    folder: Path,
    *,
    tokenizer: Path,
    end_id: int,
    bos_id: int,
    card: str,
    dtype: torch.dtype = torch.float32,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write `config.json`, weights in `dtype`, generation config, tokenizer files and model card."""
    family = family_for(model.config)
    ids = {"bos_token_id": bos_id, "eos_token_id": end_id}
    config = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "dtype": str(dtype).removeprefix("torch."),
        **ids,
        "pad_token_id": None,  # Families assume one that may lie outside our vocabulary.
        **family.to_hf(model.config),
    }
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {**ids, "do_sample": True, "temperature": 1.0, "top_p": 0.95})
    tensors = stored_tensors(model, family)
    save_weights(tensors, folder, dtype=dtype, max_shard_bytes=max_shard_bytes, mode_from=folder / "config.json")
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer / name, folder / name)
    if (tokenizer / TEMPLATE_FILE).is_file():
        shutil.copyfile(tokenizer / TEMPLATE_FILE, folder / TEMPLATE_FILE)
    (folder / "README.md").write_text(card, encoding="utf-8")


def load_config(folder: Path) -> DecoderConfig:
    """The architecture of a model folder or GGUF file, without its weights.

    Raises:
        InputError: no such folder, or an artifact of another kind or with a damaged file.
        ModelError: `config.json` is missing, damaged or of an unsupported model.
    """
    if folder.is_file():
        from wenfang.model.gguf import load_gguf_config

        return load_gguf_config(folder)
    check_artifact(folder, "model")
    values = read_json(folder / "config.json")
    return family_of(values).from_hf(values)


def load_model(folder: Path, *, dtype: torch.dtype = torch.float32) -> Decoder:
    """Open a model folder or GGUF file, strictly: every tensor there, none besides, each of its shape. Memory is taken
    only for what must be converted.

    Raises:
        InputError, ModelError: as `load_config`, or the weights are missing, damaged or do not fit.
    """
    model, tensors = open_model(folder, dtype=dtype)
    state = dict(tensors)
    if model.config.tie_embeddings:
        state["lm_head.weight"] = state["embed_tokens.weight"]
    model.load_state_dict(state, strict=True, assign=True)
    if model.config.tie_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    return model


def open_model(folder: Path, *, dtype: torch.dtype) -> tuple[Decoder, Iterator[tuple[str, Tensor]]]:
    """The decoder of a model folder or GGUF file without memory for its weights, and its weights in `dtype` by name,
    each read when its turn comes; a tied head is the embedding.

    Raises:
        InputError, ModelError: as `load_model`; what is wrong with a tensor's numbers only at its turn.
    """
    if folder.is_file():
        from wenfang.model.gguf import open_gguf

        return open_gguf(folder, dtype=dtype)
    config = load_config(folder)
    family = family_of(read_json(folder / "config.json"))
    return match_weights(config, family, SafetensorsFolder(folder), dtype=dtype)


def match_weights(
    config: DecoderConfig, family: Family, source: TensorSource, *, dtype: torch.dtype
) -> tuple[Decoder, Iterator[tuple[str, Tensor]]]:
    """As `open_model`, for tensors wherever they are.

    Raises:
        ModelError: the tensors do not fit the config, one for one.
    """
    model = skeleton(config, len(source.shapes))
    names = tensor_map(family, model)
    located = check_tensors(source, names, tied_head=config.tie_embeddings)
    return model, names.from_checkpoint(lambda name: read_tensor(source, located[name], dtype))


def skeleton(config: DecoderConfig, tensor_count: int) -> Decoder:
    """A decoder without memory for its weights.

    Args:
        config: its shape, perhaps from a hostile file.
        tensor_count: how many tensors the weights have; a model with more layers than that is not theirs.

    Raises:
        ModelError: the sizes are absurd.
    """
    try:
        if config.layers > tensor_count:
            raise OverflowError
        with torch.device("meta"):
            return Decoder(config)
    except (RuntimeError, OverflowError):  # Torch counts the bytes of a tensor even where it allocates none.
        sizes = f"layers={config.layers}, dim={config.dim}, vocab_size={config.vocab_size}"
        raise ModelError(
            say(
                zh=f"模型設定的大小與權重不可能相符：{sizes}。",
                en=f"The config asks for a model that its weights cannot be: {sizes}.",
            )
        ) from None


def stored_tensors(model: Decoder, family: Family) -> dict[str, Tensor]:
    """The tensors a folder of this family keeps, by the family's names; a tied head is kept once, as the embedding."""
    return dict(tensor_map(family, model).to_checkpoint(model.state_dict()))


def tensor_map(family: Family, model: Decoder) -> TensorMap:
    """How the family's checkpoint and this decoder's parameters correspond."""
    tied = {"lm_head.weight"} if model.config.tie_embeddings else set()
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    return TensorMap(family.links(model.config), state, family.ignored)


def read_json(path: Path) -> dict[str, Any]:
    """One of the folder's JSON files.

    Raises:
        ModelError: it is missing or holds no JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            say(
                zh=f"{str(path.parent)!r} 缺少 {path.name!r}，不是模型資料夾。",
                en=f"{str(path.parent)!r} lacks {path.name!r}; it is not a model folder.",
            )
        ) from None
    except ValueError as error:
        raise ModelError(
            say(zh=f"{str(path)!r} 不是正確的 JSON：{error}", en=f"{str(path)!r} is not valid JSON: {error}")
        ) from None
    if not isinstance(values, dict):
        raise ModelError(say(zh=f"{str(path)!r} 應是 JSON 物件。", en=f"{str(path)!r} must hold a JSON object."))
    return values


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
