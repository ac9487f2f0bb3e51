"""Read an extract of regulated verse: `<dynasty>.tsv.xz`, one poem a line as `author<TAB>title<TAB>poem`."""

import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wenfang.core.errors import DataError
from wenfang.core.language import say
from wenfang.text.verse import FORMS, Form

SUFFIX = ".tsv.xz"
_FORM_OF_LENGTH = {form.lines * form.line_length: form for form in FORMS.values()}


@dataclass(frozen=True)
class Poem:
    """One poem of the source, its lines without punctuation."""

    author: str
    title: str
    dynasty: str
    form: Form
    lines: tuple[str, ...]


def read_source(folder: Path, dynasties: tuple[str, ...]) -> Iterator[Poem]:
    """The poems of the chosen dynasties, in the order of the files.

    Raises:
        DataError: a file is missing, cannot be unpacked, is not UTF-8, or a line is not a poem.
    """
    for dynasty in dynasties:
        path = folder / f"{dynasty}{SUFFIX}"
        for number, line in enumerate(_read_text(path).split("\n"), start=1):
            if line:
                yield _parse_line(line, dynasty, path, number)


def check_source(folder: Path, dynasties: tuple[str, ...]) -> None:
    """Check that the source is there, before any work.

    Raises:
        DataError: the folder or the file of a dynasty is missing.
    """
    for dynasty in dynasties:
        path = folder / f"{dynasty}{SUFFIX}"
        if not path.is_file():
            raise DataError(
                say(
                    zh=f"找不到詩料 {str(path)!r}。請檢查 `source`，它應是含有 {dynasty}{SUFFIX} 的資料夾。",
                    en=f"No verse at {str(path)!r}. Check `source`: a folder that holds {dynasty}{SUFFIX}.",
                )
            )


def _read_text(path: Path) -> str:
    try:
        return lzma.decompress(path.read_bytes()).decode("utf-8")
    except OSError as error:
        raise DataError(
            say(
                zh=f"無法讀取 {str(path)!r}：{error.strerror}。請檢查路徑與權限。",
                en=f"Cannot read {str(path)!r}: {error.strerror}. Check the path and its permissions.",
            )
        ) from None
    except (lzma.LZMAError, EOFError):
        raise DataError(
            say(
                zh=f"{str(path)!r} 不是完整的 xz 檔，無法解開。請重新取得。",
                en=f"{str(path)!r} is not a whole xz file. Get it again.",
            )
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(
            say(
                zh=f"{str(path)!r} 解開後不是 UTF-8（第 {error.start} 位元組）。請轉成 UTF-8。",
                en=f"{str(path)!r} does not unpack to UTF-8 (byte {error.start}). Convert it to UTF-8.",
            )
        ) from None


def _parse_line(line: str, dynasty: str, path: Path, number: int) -> Poem:
    fields = line.split("\t")
    form = _FORM_OF_LENGTH.get(len(fields[2])) if len(fields) == 3 else None
    if form is None:
        found = f"{len(fields[2])} 字" if len(fields) == 3 else f"{len(fields)} 欄"
        found_en = f"a poem of {len(fields[2])} characters" if len(fields) == 3 else f"{len(fields)} columns"
        raise DataError(
            say(
                zh=f"{str(path)!r} 第 {number} 行應為「作者、題目、詩」三欄，詩長 20、28、40 或 56 字；"
                f"此行為 {found}。",
                en=f"{str(path)!r}, line {number}: needs author, title and a poem of 20, 28, 40 or 56 characters; "
                f"found {found_en}.",
            )
        )
    author, title, text = fields
    step = form.line_length
    return Poem(author, title, dynasty, form, tuple(text[i : i + step] for i in range(0, len(text), step)))
