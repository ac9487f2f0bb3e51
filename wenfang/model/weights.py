"""Weights on disk as safetensors: one file or shards with an index, mapped into memory and checked before use.

Format: https://huggingface.co/docs/safetensors — 8 bytes of header length, a JSON header, then the tensors.
"""

import itertools
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from wenfang.core.errors import ModelError
from wenfang.core.language import say
from wenfang.core.tensors import map_bytes, write_tensors
from wenfang.model.families.tensor_map import TensorMap

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
HEAD = "lm_head.weight"
CHECKED_TOGETHER = 1 << 16
"""Numbers. Of 16-bit ones the sum makes a copy in fp32; large copies between small objects would split up the heap."""
LARGEST_HEADER = 32 << 20
"""Bytes; the header of a model with 100,000 tensors has about 12 million."""
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Number formats that are weights as they stand."""
PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class TensorSource(Protocol):
    """Named tensors somewhere on disk, under the names of the Hugging Face format."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each tensor, known without reading it."""

    def source(self, name: str) -> Path:
        """The file that holds, or should hold, a tensor; for messages."""

    def read(self, name: str) -> Tensor:
        """One tensor, in a floating-point format."""


class SafetensorsFolder:
    """The weights of a Hugging Face folder. Opening reads headers only; `read` maps the file, it copies nothing.

    Raises:
        ModelError: a file is missing, leads out of the folder, is damaged or is no safetensors file; a tensor
            overlaps another, is of an unknown format, stands in two files or not where the index says.
    """

    def __init__(self, folder: Path) -> None:
        self._main = folder / WEIGHTS
        claims: Mapping[str, set[str] | None] = {WEIGHTS: None}
        if not self._main.is_file() and (folder / INDEX).is_file():
            self._main = folder / INDEX
            claims = _read_index(self._main)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.formats: Counter[str] = Counter()
        """How many tensors are stored in each number format."""
        self._files: dict[str, Path] = {}
        self._entries: dict[str, Entry] = {}
        for path, claimed in [(_inside(folder, shard), claimed) for shard, claimed in claims.items()]:
            found = read_header(path)
            _check_shard(path, set(found), claimed)
            for name in found:
                if name in self._files:
                    twice = say(zh=f"也在 {self._files[name].name!r}", en=f"is in {self._files[name].name!r} as well")
                    raise _bad_tensor(path, name, twice)
                self._files[name] = path
            self._entries |= found
            self.shapes |= {name: entry.shape for name, entry in found.items()}
            self.formats.update(entry.dtype for entry in found.values())

    @property
    def files(self) -> set[Path]:
        """The files that hold the tensors."""
        return set(self._files.values())

    def source(self, name: str) -> Path:
        """The file that holds a tensor; the folder's main file for one that is in none."""
        return self._files.get(name, self._main)

    def read(self, name: str) -> Tensor:
        """One tensor over its mapped part of the file, which is out of memory once nobody holds it."""
        path, entry = self._files[name], self._entries[name]
        try:
            raw = map_bytes(path, entry.begin, entry.end)
        except (ValueError, OSError) as error:
            raise damaged(path, str(error)) from None
        return torch.from_numpy(raw).view(DTYPES[entry.dtype]).view(entry.shape)


def read_header(path: Path) -> dict[str, "Entry"]:
    """Every tensor in a safetensors file, after checking that the file is whole and its tensors tile it.

    Raises:
        ModelError: the file is damaged, cut off, of another format, or holds numbers that are no weights.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
            length, rest = int.from_bytes(start, "little"), path.stat().st_size - 8
            if len(start) < 8 or length > min(rest, LARGEST_HEADER):
                if start.startswith(PICKLE_STARTS):  # Only here: a proper header may begin with the same bytes.
                    raise _pickle(path)
                why = say(zh=f"標頭長度 {length:,} 不合理", en=f"its header claims {length:,} bytes")
                raise damaged(path, why)
            header = json.loads(file.read(length))
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from None
    except (ValueError, RecursionError):
        raise damaged(path, say(zh="標頭不是 JSON", en="its header is not JSON")) from None
    if not isinstance(header, dict):
        raise damaged(path, say(zh="標頭不是 JSON 物件", en="its header is not a JSON object"))
    header.pop("__metadata__", None)
    first = end = 8 + length
    entries = [_entry(path, name, entry, first) for name, entry in header.items()]
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != end:
            problem = say(zh="與鄰居重疊或有空隙", en="overlaps its neighbour or leaves a gap")
            raise _bad_tensor(path, entry.name, problem)
        end = entry.end
    if end != rest + 8:
        missing = say(
            zh=f"張量共 {end - first:,} 位元組，檔內有 {rest - length:,}",
            en=f"its tensors take {end - first:,} bytes, it holds {rest - length:,}",
        )
        raise damaged(path, missing)
    return {entry.name: entry for entry in entries}


def check_tensors(source: TensorSource, names: TensorMap, *, tied_head: bool) -> dict[str, str]:
    """Compare what a source holds with what a model needs: every tensor there, none besides, each of its shape.

    Args:
        source: where the tensors are.
        names: what the model needs.
        tied_head: the model ties its head to its embedding. One that is stored all the same must equal it.

    Returns:
        The source's name of each tensor.

    Raises:
        ModelError: names the file and the tensor.
    """
    found = set(source.shapes)
    located = names.locate(found)
    unknown = {name for name in found - set(located.values()) if not names.is_ignored(name)}
    _check_names(source, set(names.shapes) - set(located), unknown)
    for name, stored in located.items():
        if (shape := source.shapes[stored]) != (wanted := tuple(names.shapes[name])):
            where = str(source.source(stored))
            raise ModelError(
                say(
                    zh=f"{where!r} 的 {stored} 形狀是 {list(shape)}，應為 {list(wanted)}。",
                    en=f"{where!r}: {stored} has shape {list(shape)}, the config asks for {list(wanted)}.",
                )
            )
    embedding = next(iter(located.values()))  # A decoder lists its embedding first.
    if tied_head and HEAD in found and not torch.equal(source.read(HEAD), source.read(embedding)):
        problem = say(zh=f"應與 {embedding!r} 相同，卻不同", en=f"should equal {embedding!r} and does not")
        raise _bad_tensor(source.source(HEAD), HEAD, problem)
    return located


def read_tensor(source: TensorSource, name: str, dtype: torch.dtype) -> Tensor:
    """One tensor in `dtype`, all its numbers finite; one already stored so stays mapped.

    Raises:
        ModelError: it holds NaN or infinity.
    """
    tensor = source.read(name)
    if not all(map(_finite, tensor.reshape(-1).split(CHECKED_TOGETHER))):
        raise ModelError(
            say(
                zh=f"{str(source.source(name))!r} 的 {name} 含有 NaN 或無限大，無法使用。",
                en=f"{str(source.source(name))!r}: {name} holds NaN or infinity; the model cannot be used.",
            )
        )
    return tensor.to(dtype)


def _finite(numbers: Tensor) -> bool:
    # A sum meets every NaN and infinity; finite numbers whose sum overflows are looked at again.
    return bool(numbers.sum(dtype=torch.float32).isfinite() or numbers.isfinite().all())


def save_weights(
    tensors: Mapping[str, Tensor], folder: Path, *, dtype: torch.dtype, max_shard_bytes: int, mode_from: Path
) -> None:
    """Write `model.safetensors`, or shards with an index where that would exceed `max_shard_bytes`.

    Only one shard at a time is held in `dtype`. Permissions are those of the file `mode_from`: the library
    writes files only their owner can read.
    """
    sizes = {name: tensor.numel() * dtype.itemsize for name, tensor in tensors.items()}
    shards = list(_shards(sizes, max_shard_bytes))
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        part = {name: tensors[name].detach().to(dtype).contiguous() for name in names}
        write_tensors(part, folder / file, {"format": "pt"})
        shutil.copymode(mode_from, folder / file)
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _shards(sizes: Mapping[str, int], largest: int) -> Iterator[list[str]]:
    """Names in order, cut where the next tensor would make a shard larger than `largest` bytes."""
    names: list[str] = []
    total = 0
    for name, size in sizes.items():
        if names and total + size > largest:
            yield names
            names, total = [], 0
        names.append(name)
        total += size
    yield names


@dataclass(frozen=True)
class Entry:
    """One tensor of a file, and its place there in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def _entry(path: Path, name: str, entry: Any, first: int) -> Entry:
    """One tensor of a header, its own numbers checked; they count from where the first tensor begins."""
    match entry:
        case {"dtype": str() as dtype, "shape": [*shape], "data_offsets": [int() as begin, int() as end]} if all(
            isinstance(n, int) and n >= 0 for n in shape
        ):
            if dtype not in DTYPES:
                known = ", ".join(DTYPES)
                problem = say(
                    zh=f"存成 {dtype[:20]!r}；只能讀 {known}", en=f"is stored as {dtype[:20]!r}; known are {known}"
                )
                raise _bad_tensor(path, name, problem)
            if not 0 <= begin <= end or math.prod(shape) * DTYPES[dtype].itemsize != end - begin:
                problem = say(
                    zh=f"的形狀 {_short(shape)} 與所占的位元組不符",
                    en=f"has the shape {_short(shape)}, which does not fit the bytes it takes",
                )
                raise _bad_tensor(path, name, problem)
            return Entry(name, dtype, tuple(shape), first + begin, first + end)
        case _:
            raise _bad_tensor(path, name, say(zh="的標頭不完整", en="has no usable header entry"))


def _short(shape: Iterable[int]) -> str:
    """A shape fit for a message, however absurd."""
    text = str(list(itertools.islice(shape, 8)))
    return text if len(text) < 80 else text[:76] + "…]"


def _read_index(path: Path) -> dict[str, set[str] | None]:
    """The shards an index names, each with the tensors it should hold."""
    try:
        if path.stat().st_size > LARGEST_HEADER:
            raise damaged(path, say(zh="太大", en="it is too large"))
        weight_map = json.loads(path.read_bytes())["weight_map"]
        claims: dict[str, set[str] | None] = {}
        for name, shard in weight_map.items():
            held = claims.setdefault(str(shard), set())
            if held is not None:
                held.add(name)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise damaged(path, say(zh="沒有可用的 weight_map", en="it has no usable weight_map")) from None
    return claims


def _inside(folder: Path, name: str) -> Path:
    """A file of the folder; refuses names that lead elsewhere.

    The Hugging Face cache links its snapshots to `blobs` two levels up; that one way out is allowed.
    """
    path = folder / name
    if Path(name).name != name or "\0" in name:
        raise ModelError(
            say(
                zh=f"{str(folder / INDEX)!r} 指向資料夾之外：{name!r}。",
                en=f"{str(folder / INDEX)!r} points outside its folder: {name!r}.",
            )
        )
    if not path.is_file():
        raise _no_weights(folder, name)
    home, target = folder.resolve(), path.resolve().parent
    in_cache = home.parent.name == "snapshots" and target == home.parents[1] / "blobs"
    if target != home and not in_cache:
        raise ModelError(
            say(
                zh=f"{str(path)!r} 是指向資料夾之外的連結：{str(path.resolve())!r}。",
                en=f"{str(path)!r} is a link that leads out of its folder, to {str(path.resolve())!r}.",
            )
        )
    return path


def _check_shard(path: Path, found: set[str], claimed: set[str] | None) -> None:
    """Compare what a shard holds with what the index says; a single file (None) has no index."""
    if claimed is None or found == claimed:
        return
    name = min(claimed ^ found)
    missing = name in claimed
    raise ModelError(
        say(
            zh=f"{str(path)!r} {'缺少' if missing else '多了'}張量 {name!r}，與 {INDEX} 不符。",
            en=f"{str(path)!r} {'lacks the tensor' if missing else 'holds the tensor'} {name!r}, "
            f"{'which' if missing else 'unlike what'} {INDEX} {'places there' if missing else 'says'}.",
        )
    )


def _check_names(source: TensorSource, missing: set[str], unknown: set[str]) -> None:
    for names, zh, en in ((missing, "缺少張量", "lacks the tensor"), (unknown, "多了張量", "has an unknown tensor")):
        if names:
            name = min(names)
            where = str(source.source(name))
            raise ModelError(say(zh=f"{where!r} {zh} {name!r}。", en=f"{where!r} {en} {name!r} for its config."))


def damaged(path: Path, why: str) -> ModelError:
    """The error for a file that cannot be what its name says."""
    return ModelError(
        say(
            zh=f"{str(path)!r} 已損壞或不完整（{why}）。請重新產生或重新取得。",
            en=f"{str(path)!r} is damaged or cut off ({why}). Make it or fetch it again.",
        )
    )


def _bad_tensor(path: Path, name: str, problem: str) -> ModelError:
    shown = name if len(name) <= 200 else name[:199] + "…"
    return ModelError(say(zh=f"{str(path)!r} 的張量 {shown!r} {problem}。", en=f"{str(path)!r}: {shown!r} {problem}."))


def _pickle(path: Path) -> ModelError:
    return ModelError(
        say(
            zh=f"{str(path)!r} 是 PyTorch 的 pickle，不是 safetensors；pickle 能執行任意程式，一律不開。",
            en=f"{str(path)!r} is a PyTorch pickle, not safetensors. A pickle can run any program; it is never opened.",
        )
    )


def _no_weights(folder: Path, name: str = WEIGHTS) -> ModelError:
    return ModelError(
        say(zh=f"{str(folder)!r} 缺少權重檔 {name!r}。", en=f"{str(folder)!r} lacks its weights, {name!r}.")
    )
