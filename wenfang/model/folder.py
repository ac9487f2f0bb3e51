"""A model as a plain Hugging Face folder: written so that `transformers` opens it, read strictly."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from wenfang.core.artifact import check_artifact
from wenfang.core.errors import ModelError
from wenfang.core.language import say
from wenfang.core.tensors import write_tensors
from wenfang.model.config import DecoderConfig
from wenfang.model.decoder import Decoder
from wenfang.model.families import Family, family_for, family_of
from wenfang.model.families.tensor_map import TensorMap

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
WEIGHTS = "model.safetensors"


def save_model(
    model: Decoder,
    folder: Path,
    *,
    tokenizer: Path,
    end_id: int,
    bos_id: int,
    card: str,
    dtype: torch.dtype = torch.float32,
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
    tensors = {
        name: weight.detach().to(dtype).contiguous()
        for name, weight in tensor_map(family, model).to_checkpoint(model.state_dict())
    }
    write_tensors(tensors, folder / WEIGHTS, {"format": "pt"})
    shutil.copymode(folder / "config.json", folder / WEIGHTS)  # The library writes files only their owner can read.
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer / name, folder / name)
    (folder / "README.md").write_text(card, encoding="utf-8")


def load_config(folder: Path) -> DecoderConfig:
    """The architecture of a model folder, without its weights.

    Raises:
        InputError: no such folder, or an artifact of another kind or with a damaged file.
        ModelError: `config.json` is missing, damaged or of an unsupported model.
    """
    check_artifact(folder, "model")
    values = _read_json(folder / "config.json")
    return family_of(values).from_hf(values)


def load_model(folder: Path, *, dtype: torch.dtype = torch.float32) -> Decoder:
    """Open a model folder, strictly: every tensor there, none besides, each of its shape.

    Raises:
        InputError, ModelError: as `load_config`, or the weights are missing, damaged or do not fit.
    """
    config = load_config(folder)
    with torch.device("meta"):
        model = Decoder(config)
    names = tensor_map(family_of(_read_json(folder / "config.json")), model)
    tensors = _read_weights(folder / WEIGHTS, names)
    state = {name: tensor.to(dtype) for name, tensor in names.from_checkpoint(tensors.__getitem__)}
    if config.tie_embeddings:
        state["lm_head.weight"] = state["embed_tokens.weight"]
    model.load_state_dict(state, strict=True, assign=True)
    if config.tie_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    return model


def tensor_map(family: Family, model: Decoder) -> TensorMap:
    """How the family's checkpoint and this decoder's parameters correspond."""
    tied = {"lm_head.weight"} if model.config.tie_embeddings else set()
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    return TensorMap(family.links(model.config), state, family.ignored)


def _read_weights(path: Path, names: TensorMap) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise ModelError(
            say(
                zh=f"{str(path.parent)!r} 缺少權重檔 {path.name!r}。",
                en=f"{str(path.parent)!r} lacks its weights, {path.name!r}.",
            )
        )
    try:
        with safe_open(path, framework="pt") as file:
            found = set(file.keys())
            located = names.locate(found)
            unknown = {name for name in found - set(located.values()) if not names.is_ignored(name)}
            _check_names(path, set(names.shapes) - set(located), unknown)
            tensors = {name: file.get_tensor(located[name]) for name in names.shapes}
    except SafetensorError as error:
        raise ModelError(
            say(
                zh=f"{str(path)!r} 已損壞或不完整（{error}）。請重新產生或重新取得。",
                en=f"{str(path)!r} is damaged or cut off ({error}). Make it or fetch it again.",
            )
        ) from None
    for name, tensor in tensors.items():
        if tensor.shape != names.shapes[name]:
            raise ModelError(
                say(
                    zh=f"{str(path)!r} 的 {name} 形狀是 {list(tensor.shape)}，應為 {list(names.shapes[name])}。",
                    en=f"{str(path)!r}: {name} has shape {list(tensor.shape)}, config.json asks for "
                    f"{list(names.shapes[name])}.",
                )
            )
        if not tensor.isfinite().all():
            raise ModelError(
                say(
                    zh=f"{str(path)!r} 的 {name} 含有 NaN 或無限大，無法使用。",
                    en=f"{str(path)!r}: {name} holds NaN or infinity; the model cannot be used.",
                )
            )
    return tensors


def _check_names(path: Path, missing: set[str], unknown: set[str]) -> None:
    for tensors, zh, en in (
        (missing, "缺少張量", "lacks the tensor"),
        (unknown, "多了張量", "has an unknown tensor"),
    ):
        if tensors:
            name = min(tensors)
            raise ModelError(
                say(
                    zh=f"{str(path)!r} {zh} {name!r}。",
                    en=f"{str(path)!r} {en} {name!r} for its config.json.",
                )
            )


def _read_json(path: Path) -> dict[str, Any]:
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
