"""Read parquet, CSV and Arrow files as Arrow batches: whole file by file, in bounded memory.

CSV has no types. Its values stay texts, so that a gold answer of 18.0 or 007 stays what it is; an empty cell is null.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv, fs

from rollout_ray.data.input_files import compression_of
from rollout_ray.storage.files import row_batches

BATCH_ROWS = 1024
BLOCK_BYTES = 16 << 20  # of CSV, read at a time; a row may not be longer


class OpenTable(NamedTuple):
    """A file that was opened.

    Attributes:
        rows: Number of rows, or None if only reading tells it.
        batches: The rows in batches of at most BATCH_ROWS. They can be read once.
    """

    schema: pa.Schema
    rows: int | None
    batches: Iterator[pa.RecordBatch]


@contextmanager
def _parquet(filesystem: fs.FileSystem, path: str) -> Iterator[OpenTable]:
    with pq.ParquetFile(path, filesystem=filesystem) as file:
        yield OpenTable(file.schema_arrow, file.metadata.num_rows, row_batches(file, BATCH_ROWS))


@contextmanager
def _csv(filesystem: fs.FileSystem, path: str) -> Iterator[OpenTable]:
    names = _open_csv(filesystem, path, {}).schema.names
    with _open_csv(filesystem, path, dict.fromkeys(names, pa.string())) as reader:
        yield OpenTable(reader.schema, None, _cut(reader))


def _open_csv(filesystem: fs.FileSystem, path: str, types: dict[str, pa.DataType]) -> csv.CSVStreamingReader:
    return csv.open_csv(
        filesystem.open_input_stream(path, compression=compression_of(path)),
        csv.ReadOptions(block_size=BLOCK_BYTES),
        csv.ParseOptions(newlines_in_values=True),
        csv.ConvertOptions(
            column_types=types, strings_can_be_null=True, quoted_strings_can_be_null=False, null_values=[""]
        ),
    )


@contextmanager
def _arrow(filesystem: fs.FileSystem, path: str) -> Iterator[OpenTable]:
    """Open a file of Arrow's stream format, which save_to_disk of Hugging Face writes, or of its file format."""
    with filesystem.open_input_file(path) as stream:
        if stream.read(6) == b"ARROW1":
            reader = pa.ipc.open_file(stream)
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            stream.seek(0)
            reader = batches = pa.ipc.open_stream(stream)
        yield OpenTable(reader.schema, None, _cut(batches))


def _cut(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for begin in range(0, batch.num_rows, BATCH_ROWS):
            yield batch.slice(begin, BATCH_ROWS)


OPEN_TABLE: dict[str, Callable[[fs.FileSystem, str], AbstractContextManager[OpenTable]]] = {
    "parquet": _parquet,
    "csv": _csv,
    "arrow": _arrow,
}
