"""A corpus is read a part at a time."""

import secrets
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wenfang.core.corpus import read_texts
from wenfang.core.report import Reporter


@pytest.mark.parametrize("rows_in_a_group", [1000, 20_000])
def test_what_was_read_does_not_stay_in_memory(rows_in_a_group: int, tmp_path: Path) -> None:
    texts = [secrets.token_hex(500) for _ in range(20_000)]  # 20 MB that do not compress to nothing.
    pq.write_table(pa.table({"text": texts}), tmp_path / "train.parquet", row_group_size=rows_in_a_group)
    before_bytes, held_bytes, seen = pa.total_allocated_bytes(), list[int](), list[str]()
    for some in read_texts(tmp_path / "train.parquet", Reporter(), "reading"):
        held_bytes.append(pa.total_allocated_bytes() - before_bytes)
        seen += some
    assert seen == texts
    assert max(held_bytes) < 8e6
