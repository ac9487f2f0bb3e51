"""API keys: a file that holds their hashes, never the keys themselves."""

import hashlib
import hmac
import json
import os
import secrets
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wenfang.core.errors import InputError, nearest
from wenfang.core.language import say
from wenfang.serve.callers import Allowance, Caller
from wenfang.serve.errors import path_of

PREFIX = "sk-wenfang-"
MAX_KEY_CHARACTERS = 256
Amount = Annotated[int, Field(ge=1, lt=2**31)]
_AMOUNT = (f" 1 到 {2**31 - 1:,} 的整數", f"a whole number from 1 to {2**31 - 1:,}")
_OBJECT = ("物件", "an object")
_WANTED = {
    "": _OBJECT,
    "keys": ("清單", "a list"),
    "name": (" 1 到 64 個字元的文字", "a text of 1 to 64 characters"),
    "sha256": (" 64 個小寫十六進位數字", "64 lower-case hexadecimal digits"),
}
"""What the parts of the file must be; those that are not named are amounts."""


class KeyEntry(BaseModel):
    """One key of the file. Keys are 256 random bits, so one round of SHA-256 is enough to hide them."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(min_length=1, max_length=64)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    requests_per_minute: Amount | None = None
    concurrent: Amount | None = None
    tokens_per_minute: Amount | None = None


class KeyFile(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    keys: list[KeyEntry] = []


class KeyRing:
    """The keys that open the server."""

    def __init__(self, file: KeyFile) -> None:
        self._callers = [
            (
                bytes.fromhex(entry.sha256),
                Caller(entry.name, Allowance(entry.requests_per_minute, entry.concurrent, entry.tokens_per_minute)),
            )
            for entry in file.keys
        ]

    def find(self, key: str) -> Caller | None:
        """Whose key this is. Takes as long for a wrong key as for a right one."""
        digest = hashlib.sha256(key.encode(errors="replace")).digest()
        found = None
        for known, caller in self._callers:
            if hmac.compare_digest(known, digest):
                found = caller
        return found if 0 < len(key) <= MAX_KEY_CHARACTERS else None


def load_keys(path: Path) -> KeyRing:
    """Open a key file.

    Raises:
        InputError: it is missing, not a key file, or holds no key.
    """
    file = _read(path)
    if not file.keys:
        raise InputError(
            say(
                zh=f"{str(path)!r} 沒有金鑰。用 `wenfang serve key new {path}` 新增。",
                en=f"{str(path)!r} holds no key. Add one: `wenfang serve key new {path}`.",
            )
        )
    return KeyRing(file)


def new_key(path: Path, name: str, allowance: Allowance) -> str:
    """Add a key to the file, which is made if it does not exist. Returns the key, which is kept nowhere.

    Raises:
        InputError: the file is not a key file, or has a key of that name, or the name or an allowance is out of range.
    """
    file = _read(path) if path.exists() else KeyFile()
    if any(entry.name == name for entry in file.keys):
        raise InputError(
            say(
                zh=f"{str(path)!r} 已有名為 {name!r} 的金鑰。請換個名字，或從檔案刪去舊的。",
                en=f"{str(path)!r} already has a key named {name!r}. Choose another name, or delete that entry.",
            )
        )
    key = PREFIX + secrets.token_urlsafe(32)
    try:
        entry = KeyEntry(name=name, sha256=hashlib.sha256(key.encode()).hexdigest(), **vars(allowance))
    except ValidationError as error:
        raise InputError(_fault(error)) from None
    text = KeyFile(keys=[*file.keys, entry]).model_dump_json(indent=2, exclude_none=True)
    partial = path.with_name(path.name + ".partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        out.write(text + "\n")
    partial.replace(path)
    return key


def _fault(error: ValidationError) -> str:
    """The first thing that is wrong with a key's entry, or with the file around it. Tells no value: it may be a key."""
    problem = error.errors(include_url=False, include_input=False)[0]
    place, name = path_of(problem["loc"]) or "JSON", problem["loc"][-1] if problem["loc"] else ""
    if problem["type"] == "extra_forbidden":
        known = list((KeyEntry if len(problem["loc"]) > 1 else KeyFile).model_fields)
        listed = ", ".join(known)
        hint = nearest(str(name), known) or say(zh=f"可用的有 {listed}。", en=f"Known are {listed}.")
        return say(zh=f"沒有 {place!r} 這一項。{hint}", en=f"there is no {place!r}. {hint}")
    if problem["type"] == "missing":
        return say(zh=f"缺少 {place!r}。", en=f"{place!r} is missing.")
    zh, en = _WANTED.get(name, _AMOUNT) if isinstance(name, str) else _OBJECT
    return say(zh=f"{place!r} 必須是{zh}。", en=f"{place!r} must be {en}.")


def _read(path: Path) -> KeyFile:
    try:
        return KeyFile.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        fault = _fault(error)
        raise InputError(
            say(zh=f"金鑰檔 {str(path)!r} 不能用：{fault}", en=f"The key file {str(path)!r} cannot be used: {fault}")
        ) from None
    except FileNotFoundError:
        raise InputError(
            say(
                zh=f"沒有金鑰檔 {str(path)!r}。用 `wenfang serve key new {path}` 建立。",
                en=f"There is no key file {str(path)!r}. Make one: `wenfang serve key new {path}`.",
            )
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            say(zh=f"金鑰檔 {str(path)!r} 無法讀取：{error}", en=f"The key file {str(path)!r} cannot be read: {error}")
        ) from None
