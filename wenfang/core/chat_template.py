"""Where a tokenizer folder keeps its chat template."""

from collections.abc import Mapping
from pathlib import Path

TEMPLATE_FILE = "chat_template.jinja"
"""Where `transformers` writes it since version 4.50; it counts before the settings."""


def read_chat_template(folder: Path, settings: Mapping[str, object]) -> str | None:
    """The template of a folder with these settings (`tokenizer_config.json`), None where it has none. Of several under
    names of their own, the one named `default`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not UTF-8.
    """
    if (folder / TEMPLATE_FILE).is_file():
        return (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
    found = settings.get("chat_template")
    if isinstance(found, list):
        found = next((each["template"] for each in found if each.get("name") == "default"), None)
    return str(found) if found else None
