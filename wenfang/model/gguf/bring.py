"""A GGUF file as a Hugging Face folder that `transformers` opens."""

import json
import tempfile
from pathlib import Path

import torch

from wenfang.core.artifact import publish
from wenfang.core.errors import InputError
from wenfang.core.language import say
from wenfang.model.folder import load_model, save_model
from wenfang.model.gguf.header import GGUFFile
from wenfang.model.gguf.vocabulary import read_tokenizer


def import_gguf(path: Path, out: Path, *, dtype: torch.dtype) -> None:
    """Write the model of a GGUF file as the folder `out`, which appears whole or not at all.

    Raises:
        InputError: `out` already holds something.
        ModelError: the file is damaged, or holds a model or a tokenizer that is not supported.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(
            say(
                zh=f"{str(out)!r} 已有內容。請另選資料夾，或先刪除它。",
                en=f"{str(out)!r} already holds something. Choose another folder, or delete it first.",
            )
        )
    file = GGUFFile(path)
    document, settings = read_tokenizer(file)
    tokens = file.strings("tokenizer.ggml.tokens")
    end_id = tokens.index(settings["eos_token"])
    bos_id = tokens.index(settings["bos_token"]) if "bos_token" in settings else end_id
    model = load_model(path, dtype=dtype)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as work:
        words, folder = Path(work) / "tokenizer", Path(work) / "model"
        words.mkdir()
        folder.mkdir()
        for name, values in (("tokenizer.json", document), ("tokenizer_config.json", settings)):
            (words / name).write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        save_model(model, folder, tokenizer=words, end_id=end_id, bos_id=bos_id, card=_card(file), dtype=dtype)
        publish(folder, out)


def _card(file: GGUFFile) -> str:
    """A model card with what the file says of itself."""
    head = ["library_name: transformers", "pipeline_tag: text-generation"]
    if license_ := file.metadata.get("general.license"):
        head.append(f"license: {json.dumps(license_, ensure_ascii=False)}")
    if languages := file.metadata.get("general.languages"):
        head.append(f"language: {json.dumps(languages, ensure_ascii=False)}")
    general = {key: value for key, value in file.metadata.items() if key.startswith("general.")}
    rows = "\n".join(f"| {key} | {json.dumps(value, ensure_ascii=False)} |" for key, value in general.items())
    name = file.metadata.get("general.name", file.path.stem)
    head_lines = "\n".join(head)
    return f"---\n{head_lines}\n---\n# {name}\n\nRead from `{file.path.name}`.\n\n| | |\n| --- | --- |\n{rows}\n"
