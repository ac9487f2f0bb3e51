"""Reading a corpus, the same way for every stage that learns from one or measures with one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from wenfang.core.errors import DataError
from wenfang.core.language import say
from wenfang.core.report import Reporter

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

BATCH = 512
"""Documents read at once: few, as they may be long."""
READ_BYTES = 1 << 20
"""Read from the file at once."""


def read_texts(path: Path, report: Reporter, label: str) -> Iterator[list[str]]:
    """The column `text` of a Parquet file, a few hundred documents at a time, under a progress line.

    Raises:
        DataError: the file is missing, damaged, empty, all blank, or its `text` is not all text; names the file.
    """
    with _opened(path, ("text",)) as file, report.track(label, file.metadata.num_rows) as track:
        done, blank = 0, True
        for batch in file.iter_batches(columns=["text"], batch_size=BATCH):
            if batch.column("text").null_count:
                raise _missing_values(path, "text")
            texts: list[str] = batch.column("text").to_pylist()
            blank = blank and not any(map(str.strip, texts))
            yield texts
            done += len(texts)
            track.update(done)
    if blank:
        raise unusable(path, say(zh="每篇文件都是空白", en="all its documents are blank"))


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """All rows of a Parquet file as texts by column name.

    Raises:
        DataError: the file is missing, damaged, empty, or lacks one of the columns as text; names the file.
    """
    with _opened(path, columns) as file:
        table = file.read(columns=list(columns))
        for name in columns:
            if table.column(name).null_count:
                raise _missing_values(path, name)
        rows: list[dict[str, str]] = table.to_pylist()
        return rows


def unusable(path: Path, reason: str) -> DataError:
    """The error for a corpus with something wrong in it, which `reason` says in a clause."""
    return DataError(
        say(
            zh=f"語料 {str(path)!r} 無法使用：{reason}。請用 data.prepare 重做。",
            en=f"The corpus {str(path)!r} cannot be used: {reason}. Make it again with data.prepare.",
        )
    )


@contextmanager
def _opened(path: Path, columns: Sequence[str]) -> Iterator["ParquetFile"]:
    """A Parquet file with rows and these columns of text; what its library finds wrong becomes a `DataError`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # By default each row group that was read stays in memory, and one is read as a whole.
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=READ_BYTES) as file:
            types = {field.name: field.type for field in file.schema_arrow}
            wrong = [name for name in columns if types.get(name) not in (pa.string(), pa.large_string())]
            if wrong:
                names = ", ".join(f"`{name}`" for name in wrong)
                raise unusable(path, say(zh=f"缺少文字欄位 {names}", en=f"it lacks columns of text named {names}"))
            if not file.metadata.num_rows:
                raise unusable(path, say(zh="裡面沒有任何文件", en="it holds no documents"))
            yield file
    except UnicodeDecodeError:
        raise unusable(path, say(zh="文字不是 UTF-8", en="its text is not UTF-8")) from None
    except (OSError, pa.ArrowException) as error:
        # The library goes on for several lines; the first says what is wrong.
        raise unusable(path, (str(error).splitlines() or [type(error).__name__])[0][:120].rstrip(" .")) from None


def _missing_values(path: Path, column: str) -> DataError:
    return unusable(path, say(zh=f"{column} 欄有空值", en=f"its column `{column}` has missing values"))
