"""What a model on disk is, told without reading its weights."""

from collections import Counter
from pathlib import Path

from wenfang.model.folder import load_config, read_json
from wenfang.model.weights import SafetensorsFolder

Account = dict[str, int | float | str]


def describe_model(path: Path) -> Account:
    """Shape, parameters and formats of a model folder or GGUF file.

    Raises:
        InputError, ModelError: as `load_config`, or its weights are damaged.
    """
    config = load_config(path)
    shape: Account = {
        name: getattr(config, name)
        for name in ("layers", "dim", "heads", "kv_heads", "head_dim", "vocab_size", "context")
    }
    if path.is_file():
        from wenfang.model.gguf import GGUFFile

        file = GGUFFile(path)
        kinds = Counter(stored.kind.name for stored in file.tensors.values())
        size = path.stat().st_size
        about: Account = {
            "format": "GGUF",
            "family": str(file.value("general.architecture")),
            "name": str(file.metadata.get("general.name", path.stem)),
            "license": str(file.metadata.get("general.license", "?")),
            "tokenizer": " ".join(str(file.metadata.get(f"tokenizer.ggml.{key}", "")) for key in ("model", "pre")),
            "chat_template": "yes" if "tokenizer.chat_template" in file.metadata else "no",
        }
    else:
        source = SafetensorsFolder(path)
        kinds = source.formats
        size = sum(file.stat().st_size for file in source.files)
        about = {"format": "safetensors", "family": str(read_json(path / "config.json")["model_type"])}
    tensors = ", ".join(f"{count} × {kind}" for kind, count in kinds.most_common())
    return {**about, **shape, "parameters": config.parameters, "tensors": tensors, "weights_bytes": size}
