"""JSON objects whose keys appear once: readers disagree about which of two values counts."""

from typing import Any

from wenfang.core.language import say


def keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of `json.loads`, as its `object_pairs_hook`.

    Raises:
        ValueError: a key appears twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(say(zh=f"鍵 {twice!r} 出現兩次", en=f"the key {twice!r} appears twice"))
    return found
