"""The header of a GGUF file, read without trusting it.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The `gguf` package's own reader believes every
count it finds (an array of 2^63 strings makes it fill the memory), so the header is parsed here: every length is
compared with the bytes that are left before anything is allocated.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize
from torch import Tensor

from wenfang.core.errors import InputError, ModelError
from wenfang.core.language import say
from wenfang.core.tensors import map_bytes

Scalar = str | int | float | bool
Value = Scalar | list[str] | list[int] | list[float] | list[bool]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
LARGEST_HEADER = 256 << 20
"""Bytes up to the first tensor; the vocabulary of a large model takes about 10 million."""
MOST_ELEMENTS = 1 << 23
"""Values of all arrays together; half a million merges are the most one sees."""
LENGTH = struct.Struct("<Q")
MOST_DIMENSIONS = 4
AT_ONCE = 1 << 22
"""Numbers that are dequantised together: that takes several times their memory."""
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Number formats that stay mapped."""
READABLE = (*PLAIN, "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}


@dataclass(frozen=True)
class Stored:
    """One tensor as it lies in the file. `shape` is in PyTorch's order, slowest dimension first."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    begin: int
    end: int


class GGUFFile:
    """A checked GGUF file: its metadata in memory, each tensor mapped while it is used.

    Raises:
        ModelError: the file is no GGUF, cut off, or claims what cannot be; names the key or tensor.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        content = _mapped(path)
        cursor = _Cursor(path, memoryview(content.data)[:LARGEST_HEADER])
        tensor_count, key_count = _counts(cursor)
        self.metadata = _metadata(cursor, key_count)
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            why = say(zh="須為 2 的次方", en="it must be a power of two")
            raise broken(path, f"general.alignment={alignment!r}, {why}")
        infos = [_tensor_info(cursor, alignment) for _ in range(tensor_count)]
        start = -(-cursor.at // alignment) * alignment
        self.tensors = _placed(path, infos, start, len(content))

    def value(self, key: str) -> Value:
        """A metadata value.

        Raises:
            ModelError: there is none.
        """
        if key not in self.metadata:
            raise ModelError(
                say(
                    zh=f"{str(self.path)!r} 缺少中繼資料 {key!r}。",
                    en=f"{str(self.path)!r} lacks the metadata {key!r}.",
                )
            )
        return self.metadata[key]

    def strings(self, key: str) -> list[str]:
        """A metadata array of strings.

        Raises:
            ModelError: it is missing or holds something else.
        """
        return [str(item) for item in self._array(key, str)]

    def numbers(self, key: str) -> list[float]:
        """A metadata array of numbers.

        Raises:
            ModelError: it is missing or holds something else.
        """
        return [float(item) for item in self._array(key, (int, float))]

    def read(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """One tensor: as stored where it is F32, F16 or BF16 (mapped, not copied), else dequantised to `dtype`.

        Raises:
            ModelError: it is quantised in a way that cannot be read, or the file is gone or shorter by now.
        """
        stored = self.tensors[name]
        block, block_bytes = GGML_QUANT_SIZES[stored.kind]
        match stored.kind.name:
            case kind if kind in PLAIN:
                if stored.begin == stored.end:  # What torch takes from an empty array has no other dtype's view.
                    return torch.empty(stored.shape, dtype=PLAIN[kind])
                return torch.from_numpy(self._mapped(stored.begin, stored.end)).view(PLAIN[kind]).view(stored.shape)
            case kind if kind in READABLE:
                values = torch.empty(stored.shape, dtype=dtype)
                together = max(1, AT_ONCE // max(1, stored.shape[-1]))
                begin = stored.begin
                for some in values.view(-1, stored.shape[-1]).split(together) if values.numel() else ():
                    end = begin + some.numel() // block * block_bytes
                    blocks = self._mapped(begin, end).reshape(len(some), -1)
                    some.copy_(torch.from_numpy(dequantize(blocks, stored.kind)))
                    begin = end
                return values
            case kind:
                raise bad_tensor(
                    self.path,
                    name,
                    say(
                        zh=f"的量化方式 {kind} 尚不能讀（能讀 {', '.join(READABLE)}）",
                        en=f"is quantised as {kind}, which cannot be read (known are {', '.join(READABLE)})",
                    ),
                )

    def _mapped(self, begin: int, end: int) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
        try:
            return map_bytes(self.path, begin, end)
        except (OSError, ValueError) as error:  # It was another file when its header was read.
            raise broken(self.path, str(error)) from None

    def _array(self, key: str, kind: type | tuple[type, ...]) -> list[Scalar]:
        value = self.value(key)
        if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
            raise broken(self.path, say(zh=f"{key!r} 型別不對", en=f"{key!r} is of the wrong type"))
        return list(value)


class _Cursor:
    """Reads forward through the header and never past its end."""

    def __init__(self, path: Path, view: memoryview) -> None:
        self.path = path
        self.view = view
        self.at = 0
        self.elements = 0

    @property
    def left(self) -> int:
        return len(self.view) - self.at

    def take(self, count: int, what: str) -> memoryview:
        if count > self.left:
            raise broken(
                self.path,
                say(
                    zh=f"{what} 要 {count:,} 位元組，超出檔頭", en=f"{what} claims {count:,} bytes, more than are left"
                ),
            )
        self.at += count
        return self.view[self.at - count : self.at]

    def number(self, code: str, what: str) -> int:
        return int(struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0])

    def text(self, what: str) -> str:
        raw = self.take(int.from_bytes(self.take(8, what), "little"), what)  # `number` takes twice as long.
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError:
            raise broken(self.path, say(zh=f"{what} 不是 UTF-8", en=f"{what} is not UTF-8")) from None

    def _texts(self, count: int, what: str) -> list[str]:
        """So many texts: a vocabulary has hundreds of thousands, for which `text` takes twice as long."""
        view, at, end, texts = self.view, self.at, len(self.view), list[str]()
        for _ in range(count):
            begin = at + 8
            at = begin + LENGTH.unpack_from(view, at)[0] if begin <= end else begin
            if at > end:
                break
            try:
                texts.append(str(view[begin:at], "utf-8"))
            except UnicodeDecodeError:
                break
            self.at = at
        # The first that is not sound is read once more, to say what is wrong with it.
        return texts + [self.text(what) for _ in range(count - len(texts))]

    def value(self, kind_number: int, what: str) -> Value:
        kind = self._kind(kind_number, what)
        if kind is GGUFValueType.STRING:
            return self.text(what)
        if kind is not GGUFValueType.ARRAY:
            scalar: Scalar = struct.unpack("<" + SCALARS[kind], self.take(struct.calcsize(SCALARS[kind]), what))[0]
            return scalar
        item, count = self._kind(self.number("I", what), what), self.number("Q", what)
        self.elements += count
        if item is GGUFValueType.ARRAY:
            raise broken(self.path, say(zh=f"{what} 是陣列的陣列", en=f"{what} is an array of arrays"))
        if self.elements > MOST_ELEMENTS:
            raise broken(self.path, say(zh=f"{what} 太長（{count:,}）", en=f"{what} is too long ({count:,} values)"))
        if item is GGUFValueType.STRING:
            if count * 8 > self.left:
                raise broken(
                    self.path, say(zh=f"{what} 太長（{count:,}）", en=f"{what} is too long ({count:,} values)")
                )
            return self._texts(count, what)
        code = SCALARS[item]
        return list(struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(code), what)))

    def _kind(self, number: int, what: str) -> GGUFValueType:
        try:
            return GGUFValueType(number)
        except ValueError:
            raise broken(
                self.path, say(zh=f"{what} 的型別 {number} 不存在", en=f"{what} has the unknown type {number}")
            ) from None


def _mapped(path: Path) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
    """The file's bytes, mapped; writing to them changes no file."""
    if not path.exists():
        raise InputError(
            say(zh=f"找不到檔案 {str(path)!r}。請檢查路徑。", en=f"There is no file {str(path)!r}. Check the path.")
        )
    if path.is_dir():
        raise InputError(
            say(
                zh=f"{str(path)!r} 是資料夾，這裡要的是 GGUF 檔。",
                en=f"{str(path)!r} is a folder; a GGUF file is wanted here.",
            )
        )
    try:
        return np.memmap(path, dtype=np.uint8, mode="c").view(np.ndarray)
    except ValueError:  # An empty file cannot be mapped.
        raise broken(path, say(zh="是空的", en="it is empty")) from None
    except OSError as error:
        raise broken(path, error.strerror or str(error)) from None


def _counts(cursor: _Cursor) -> tuple[int, int]:
    """Number of tensors and of metadata entries, after magic and version."""
    if bytes(cursor.take(min(4, cursor.left), "magic")) != MAGIC:
        raise ModelError(say(zh=f"{str(cursor.path)!r} 不是 GGUF 檔。", en=f"{str(cursor.path)!r} is not a GGUF file."))
    version = cursor.number("I", "version")
    if version not in VERSIONS:
        raise broken(
            cursor.path,
            say(
                zh=f"版本 {version} 不支援（支援 2、3，小端序）",
                en=f"version {version}; known are 2 and 3, little-endian",
            ),
        )
    tensors, keys = cursor.number("Q", "tensor count"), cursor.number("Q", "metadata count")
    # A tensor takes at least 24 bytes of header and an entry 13: more of them cannot be there.
    if tensors * 24 + keys * 13 > cursor.left:
        raise broken(
            cursor.path,
            say(
                zh=f"自稱有 {tensors:,} 個張量、{keys:,} 筆資料",
                en=f"it claims {tensors:,} tensors and {keys:,} entries",
            ),
        )
    return tensors, keys


def _metadata(cursor: _Cursor, count: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for _ in range(count):
        key = cursor.text("a metadata key")
        if key in metadata:
            raise broken(cursor.path, say(zh=f"{_short(key)} 出現兩次", en=f"{_short(key)} stands there twice"))
        metadata[key] = cursor.value(cursor.number("I", _short(key)), _short(key))
    return metadata


def _tensor_info(cursor: _Cursor, alignment: int) -> Stored:
    """A tensor's entry; its `begin` still counts from the end of the header."""
    name = cursor.text("a tensor name")
    count = cursor.number("I", _short(name))
    if not 1 <= count <= MOST_DIMENSIONS:
        raise bad_tensor(cursor.path, name, say(zh=f"有 {count} 維", en=f"has {count} dimensions"))
    shape = tuple(reversed([cursor.number("Q", _short(name)) for _ in range(count)]))
    number, begin = cursor.number("I", _short(name)), cursor.number("Q", _short(name))
    try:
        kind = GGMLQuantizationType(number)
    except ValueError:
        raise bad_tensor(
            cursor.path, name, say(zh=f"的型別 {number} 不存在", en=f"has the unknown type {number}")
        ) from None
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if shape[-1] % block or begin % alignment:
        problem = say(
            zh=f"的形狀 {list(shape)} 或位置 {begin} 不合 {kind.name}",
            en=f"has a shape {list(shape)} or place {begin} that {kind.name} does not allow",
        )
        raise bad_tensor(cursor.path, name, problem)
    return Stored(name, shape, kind, begin, begin + math.prod(shape) // block * block_bytes)


def _placed(path: Path, infos: list[Stored], start: int, size: int) -> dict[str, Stored]:
    """The tensors by name at their place in the file, none outside it or over another."""
    placed: dict[str, Stored] = {}
    last = start
    for info in sorted(infos, key=lambda info: (info.begin, info.end)):
        begin, end = start + info.begin, start + info.end
        if end > size:
            problem = say(
                zh=f"的形狀 {list(info.shape)} 超出檔案（{size:,} 位元組）",
                en=f"of shape {list(info.shape)} ends beyond the file ({size:,} bytes): it is cut off",
            )
            raise bad_tensor(path, info.name, problem)
        if begin < last:
            raise bad_tensor(path, info.name, say(zh="與另一個張量重疊", en="overlaps another tensor"))
        if info.name in placed:
            raise bad_tensor(path, info.name, say(zh="出現兩次", en="stands there twice"))
        placed[info.name] = Stored(info.name, info.shape, info.kind, begin, end)
        last = end
    return placed


def broken(path: Path, why: str) -> ModelError:
    """The error for a GGUF file that cannot be read as one."""
    return ModelError(
        say(
            zh=f"{str(path)!r} 不是完好的 GGUF 檔：{why}。請重新產生或重新取得。",
            en=f"{str(path)!r} is not a sound GGUF file: {why}. Make it or fetch it again.",
        )
    )


def uncarried(key: str, value: object) -> ModelError:
    """The error for a key that asks for something that would silently be lost."""
    return ModelError(
        say(
            zh=f"{key}={value!r} 無法在 GGUF 與 Hugging Face 之間轉換。",
            en=f"{key}={value!r} cannot be carried between GGUF and Hugging Face here.",
        )
    )


def bad_tensor(path: Path, name: str, problem: str) -> ModelError:
    """The error for one tensor of a file."""
    return broken(path, f"{_short(name)} {problem}")


def _short(name: str) -> str:
    return repr(name if len(name) <= 100 else name[:99] + "…")
