"""Parquet and Arrow files from anywhere: bounded before they are read, and read in parts.

Both are compressed: a file of a kilobyte may hold gigabytes. What a parquet file will be is stated in its
metadata. Arrow files are mapped into memory as they are, unless compressed, which `datasets` never writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vg_utils.data.examples import DataError
from vg_utils.data.records import Record

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

LARGEST_GROUP = 2 * 2**30  # bytes of a group of rows, not compressed
MOST_ROWS = 20_000_000  # of a file
AT_ONCE = 1000  # rows
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3  # MessageHeader of Arrow's Message.fbs


def open_parquet(path: Path) -> ParquetFile:
    """A parquet file whose metadata were read.

    Raises:
        DataError: no such file or a damaged one, or it has more than `MOST_ROWS` rows or a group of them
            with more than `LARGEST_GROUP` bytes.
    """
    from pyarrow.parquet import ParquetFile  # late: it takes a second

    with told_in_a_line(path, "a parquet file"):
        file = ParquetFile(path)
        if file.metadata.num_rows > MOST_ROWS:
            raise DataError(f"{path}: expected at most {MOST_ROWS:,} rows, got {file.metadata.num_rows:,}")
        for number in range(file.num_row_groups):
            size = file.metadata.row_group(number).total_byte_size
            if size > LARGEST_GROUP:
                at_most = f"{LARGEST_GROUP:,} bytes in a group of rows, not compressed"
                raise DataError(f"{path}: expected at most {at_most}, got {size:,}; write smaller groups")
        return file


def parquet_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[list[Record]]:
    """The rows as dicts, up to `AT_ONCE` at a time. Raises a DataError as `open_parquet`."""
    file = open_parquet(path)
    with told_in_a_line(path, "a parquet file"):
        for group in range(file.num_row_groups):
            # A value is no larger than its group, and many rows may share one: fewer where it may be large
            size = file.metadata.row_group(group).total_byte_size
            rows = max(1, min(AT_ONCE, LARGEST_GROUP // max(1, size)))
            for batch in file.iter_batches(rows, row_groups=[group], columns=columns):
                yield batch.to_pylist()


class ParquetColumn:
    """A column of which no more is in memory than a few rows: `column(row)` is quick from row to row on."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        self._begin()

    def _begin(self) -> None:
        self._batches, self._start, self._rows = parquet_rows(self._path, [self._name]), 0, []

    def __call__(self, row: int) -> Any:
        if row < self._start:
            self._begin()
        while row >= self._start + len(self._rows):
            self._start += len(self._rows)
            self._rows = next(self._batches)
        return self._rows[row - self._start][self._name]


def check_arrow(path: Path) -> None:
    """Raise a DataError unless it is Arrow's stream, whole and not compressed.

    A damaged one would be read beyond its end, since nobody else looks: that can end the interpreter.
    """
    import pyarrow as pa

    with told_in_a_line(path, "an Arrow file"), pa.memory_map(str(path)) as file:
        for message in pa.ipc.MessageReader.open_stream(file):
            if _is_compressed(message.metadata.to_pybytes()):
                raise DataError(f"{path}: expected an Arrow file that is not compressed, got one that is")
        file.seek(0)
        for batch in pa.ipc.open_stream(file):
            batch.validate(full=True)


def _is_compressed(metadata: bytes) -> bool:
    """Whether a message of Arrow's has a batch with the field `compression` (format/Message.fbs)."""

    def number(at: int, size: int) -> int:
        return int.from_bytes(metadata[at : at + size], "little", signed=size > 2)

    def field(table: int, index: int) -> int | None:  # as flatbuffers keep them
        fields = table - number(table, 4)
        offset = number(fields + 4 + 2 * index, 2) if 4 + 2 * index < number(fields, 2) else 0
        return table + offset if offset else None

    def inner(table: int, index: int) -> int:
        at = field(table, index)
        return at + number(at, 4)

    message = number(0, 4)
    kind = field(message, 1)
    kind = number(kind, 1) if kind else 0
    if kind not in (_DICTIONARY_BATCH, _RECORD_BATCH):
        return False
    batch = inner(message, 2)
    return field(inner(batch, 1) if kind == _DICTIONARY_BATCH else batch, 3) is not None


@contextmanager
def told_in_a_line(path: Path, what: str) -> Iterator[None]:
    """Whatever a library raises while it reads a file becomes a DataError."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # pyarrow, pandas and datasets raise errors of many kinds
        raise DataError(f"{path}: expected {what}, got: {error or type(error).__name__}") from error
