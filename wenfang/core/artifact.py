"""Things that last: plain folders in the ecosystem's own formats, with a manifest beside the files.

A folder is written somewhere temporary and appears by rename, so a half-written artifact is never seen.
The manifest `wenfang.json` records what it is, what it was made from and the size and SHA-256 of each file.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from wenfang.core.errors import InputError
from wenfang.core.language import say

MANIFEST = "wenfang.json"
CHECKPOINTS = "checkpoints"
"""Folders that a stage goes on from when it is interrupted. They are no part of its output, and stay until that is
whole: training whose result the disk has no room for is not lost."""
Summary = dict[str, int | float | str]
"""Headline results of a stage: what the closing table, the manifest and the model card show."""


class FileRecord(BaseModel):
    """Size in bytes and SHA-256 of one file of an artifact."""

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """What an artifact is and where it came from."""

    model_config = ConfigDict(extra="forbid")

    kind: str
    stage: str
    fingerprint: str
    config: dict[str, Any]
    inputs: dict[str, str]
    """Fingerprint of each input, by config field."""
    summary: Summary
    seconds: float
    """Wall time the stage took, over all its attempts."""
    files: dict[str, FileRecord]


def fingerprint_of(value: object) -> str:
    """16 hex digits that stand for a JSON-serialisable value, independent of key order."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def fingerprint_path(path: Path) -> str:
    """A fingerprint of a file or folder: the manifest's where there is one, else of names and bytes.

    Hidden files and `__pycache__` are left out: looking into a folder must not make it another one.

    Raises:
        InputError: nothing is there, or it cannot be read.
    """
    if not path.exists():
        raise InputError(
            say(zh=f"找不到 {str(path)!r}。請檢查路徑。", en=f"Nothing is at {str(path)!r}. Check the path.")
        )
    if (path / MANIFEST).is_file():
        return read_manifest(path).fingerprint
    try:
        files = sorted(p for p in path.rglob("*") if _is_content(p, path)) if path.is_dir() else [path]
        return fingerprint_of({str(p.relative_to(path)): _sha256(p) for p in files})
    except OSError as error:
        where, why = str(error.filename or path), error.strerror or str(error)
        raise InputError(
            say(
                zh=f"無法讀取 {where!r}：{why}。請檢查權限。",
                en=f"Cannot read {where!r}: {why}. Check its permissions.",
            )
        ) from None


def record_files(folder: Path) -> dict[str, FileRecord]:
    """Size and hash of each file under `folder`, the manifest itself and checkpoints left out."""
    return {
        str(p.relative_to(folder)): FileRecord(bytes=p.stat().st_size, sha256=_sha256(p))
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != MANIFEST and CHECKPOINTS not in p.relative_to(folder).parts
    }


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an artifact.

    Raises:
        InputError: the manifest is missing or is not one.
    """
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise InputError(
            say(zh=f"{str(folder)!r} 裡沒有 {MANIFEST}。", en=f"{str(folder)!r} has no {MANIFEST}.")
        ) from None
    except ValidationError:
        raise InputError(
            say(
                zh=f"{str(path)!r} 已損壞，無法讀取。請刪除該資料夾後重跑該階段。",
                en=f"{str(path)!r} is damaged. Delete that folder and run its stage again.",
            )
        ) from None


def check_artifact(folder: Path, kind: str) -> None:
    """Check that `folder` can be an artifact of `kind`, before anything is read from it.

    A folder without a manifest comes from outside and is left to its reader. With one, the kind must match
    and each recorded file must be there with its recorded size.

    Raises:
        InputError: no such folder, another kind, or a file missing or truncated.
    """
    if folder.is_file():
        raise InputError(
            say(
                zh=f"找不到資料夾 {str(folder)!r}：它是檔案。請給它所在的資料夾。",
                en=f"No folder {str(folder)!r}: it is a file. Give the folder that holds it.",
            )
        )
    if not folder.is_dir():
        raise InputError(
            say(
                zh=f"找不到資料夾 {str(folder)!r}。請檢查路徑。",
                en=f"No folder {str(folder)!r}. Check the path.",
            )
        )
    if not (folder / MANIFEST).is_file():
        return
    manifest = read_manifest(folder)
    if manifest.kind != kind:
        raise InputError(
            say(
                zh=f"{str(folder)!r} 是 {manifest.kind}，這裡需要 {kind}。",
                en=f"{str(folder)!r} is a {manifest.kind}; a {kind} is needed here.",
            )
        )
    for name, record in manifest.files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            raise InputError(
                say(
                    zh=f"{str(folder)!r} 缺少檔案 {name!r}。請重跑產生它的階段 {manifest.stage}。",
                    en=f"{str(folder)!r} lacks the file {name!r}. Run the stage that made it, {manifest.stage}, again.",
                )
            )
        if size != record.bytes:
            raise InputError(
                say(
                    zh=f"{str(path)!r} 有 {size} 位元組，應為 {record.bytes}：檔案不完整。請重跑 {manifest.stage}。",
                    en=f"{str(path)!r} has {size} bytes instead of {record.bytes}: it was cut off or changed. "
                    f"Run {manifest.stage} again.",
                )
            )


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that after a crash it holds the old bytes or the new ones, never a part."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def sync_folder(folder: Path) -> None:
    """Have the disk hold every file and name under `folder`, so that a power cut loses none of it."""
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def publish(partial: Path, final: Path) -> None:
    """Make a finished folder visible under its name in one step, replacing nothing but leftovers."""
    sync_folder(partial)
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    _sync(final.parent)


def _is_content(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    return path.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in parts)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # It knows no name.
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
