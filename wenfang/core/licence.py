"""Under which licence a folder's own card puts it."""

from pathlib import Path

import yaml


def read_licence(folder: Path) -> str | None:
    """The `license` in the metadata block of README.md, as Hugging Face has it; None where it states none."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    parts = text.split("---\n", 2)
    if len(parts) < 3 or parts[0]:
        return None
    try:
        front = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return None
    return str(front["license"]) if isinstance(front, dict) and "license" in front else None


def licence_line(licence: str | None) -> str:
    """The line of a metadata block that states it; empty where there is none to state."""
    return f"license: {licence}\n" if licence else ""
