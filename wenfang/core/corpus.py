"""Reading the texts of a corpus, the same way for every stage that learns from them."""

from collections.abc import Iterator
from pathlib import Path

from wenfang.core.errors import DataError
from wenfang.core.language import say
from wenfang.core.report import Reporter

BATCH = 8192


def read_texts(path: Path, report: Reporter, label: str) -> Iterator[list[str]]:
    """The column `text` of a Parquet file, a few thousand documents at a time, under a progress line.

    Raises:
        DataError: the file is missing, damaged, empty, or its `text` is not all text; names the file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            fields = {field.name: field.type for field in file.schema_arrow}
            if fields.get("text") not in (pa.string(), pa.large_string()):
                raise _unusable(path, say(zh="沒有文字欄位 text", en="it has no column `text` of strings"))
            rows = file.metadata.num_rows
            if not rows:
                raise _unusable(path, say(zh="裡面沒有任何文件", en="it holds no documents"))
            done = 0
            with report.track(label, rows) as track:
                for batch in file.iter_batches(columns=["text"], batch_size=BATCH):
                    if batch.column("text").null_count:
                        raise _unusable(path, say(zh="text 欄有空值", en="its column `text` has missing values"))
                    yield batch.column("text").to_pylist()
                    done += batch.num_rows
                    track.update(done)
    except (OSError, pa.ArrowException) as error:
        raise _unusable(path, (str(error).splitlines() or [type(error).__name__])[0][:120]) from None


def _unusable(path: Path, reason: str) -> DataError:
    return DataError(
        say(
            zh=f"語料 {str(path)!r} 無法使用：{reason}。請用 data.prepare 重做。",
            en=f"The corpus {str(path)!r} cannot be used: {reason}. Make it again with data.prepare.",
        )
    )
