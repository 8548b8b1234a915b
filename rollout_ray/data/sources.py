"""Open an input of any supported kind as a stream of Arrow batches that can be read again.

Files are streamed: memory holds one batch, whatever their size. Rows get no meaning here (see question_set.py).
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import pyarrow as pa
from pyarrow import fs

from rollout_ray.core.errors import DatasetError
from rollout_ray.core.redaction import has_credentials
from rollout_ray.data.arrow_schema import conform, output_schema, united_schema
from rollout_ray.data.input_files import InputFiles, compression_of, find_input_files
from rollout_ray.data.json_files import JsonLine, read_objects
from rollout_ray.data.memory import to_table
from rollout_ray.data.rows import infer_schema, to_batch
from rollout_ray.data.table_formats import BATCH_ROWS, OPEN_TABLE

log = logging.getLogger(__name__)

BATCH_BYTES = 16 << 20  # of JSON lines; their Python values and Arrow arrays take a few times as much


class Source(Protocol):
    """A stream of rows that can be read again. `name` is for messages."""

    @property
    def name(self) -> str: ...

    @property
    def schema(self) -> pa.Schema: ...

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows in order, in batches of at most BATCH_ROWS with this `schema`."""
        ...

    def files_without(self, column: str) -> list[str]:
        """Return the files that have rows, and no row with this column."""
        ...


@dataclass(frozen=True)
class TableSource:
    """A table in memory."""

    name: str
    table: pa.Table
    schema: pa.Schema = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "schema", output_schema(self.table.schema, self.name))

    def batches(self) -> Iterator[pa.RecordBatch]:
        try:
            for batch in self.table.to_batches(max_chunksize=BATCH_ROWS):
                yield conform(batch, self.schema)
        except pa.ArrowException as error:
            raise DatasetError(f"{self.name} cannot be carried into the output: {error}. Correct the value") from error

    def files_without(self, column: str) -> list[str]:
        return []


@dataclass(frozen=True)
class TableFilesSource:
    """Files of one table format, read in batches. A column that differs between files gets the wider type."""

    files: InputFiles
    limit: int | None
    schema: pa.Schema = field(init=False)
    _columns: dict[str, Collection[str]] = field(init=False)  # of each file that has rows

    def __post_init__(self) -> None:
        schemas = []
        columns: dict[str, Collection[str]] = {}
        form = self.files.format
        for info in self.files.infos:
            try:
                with OPEN_TABLE[form](self.files.filesystem, info.path) as table:
                    schemas.append(self._with_partition(table.schema.empty_table(), info).schema)
                    if table.rows != 0:
                        columns[info.path] = schemas[-1].names
            except (pa.ArrowException, OSError) as error:
                raise DatasetError(
                    f"{info.path} cannot be read as {form}: {error}; give a parquet or a .jsonl file"
                ) from error
        object.__setattr__(self, "schema", output_schema(united_schema(schemas, self.name), self.name))
        object.__setattr__(self, "_columns", columns)

    @property
    def name(self) -> str:
        return self.files.name

    def files_without(self, column: str) -> list[str]:
        return [path for path, names in self._columns.items() if column not in names]

    def batches(self) -> Iterator[pa.RecordBatch]:
        left = sys.maxsize if self.limit is None else self.limit
        form = self.files.format
        for info in self.files.infos:
            try:
                with OPEN_TABLE[form](self.files.filesystem, info.path) as table:
                    for batch in table.batches:
                        kept = batch.slice(0, left)
                        left -= kept.num_rows
                        self.files.refuse_change(info)
                        if kept.num_rows:
                            yield conform(self._with_partition(kept, info), self.schema)
                        if left == 0:
                            return
            except (pa.ArrowException, OSError) as error:
                self.files.refuse_change(info)
                raise DatasetError(f"{info.path} cannot be read: {error}. Write the file again") from error

    def _with_partition(self, rows: Any, info: fs.FileInfo) -> Any:
        """Return a table or batch with the columns that the folders of its file name. Its own columns count first."""
        rows = rows.replace_schema_metadata(None)
        for name, value in self.files.partition(info).items():
            if name not in rows.schema.names:
                rows = rows.append_column(name, pa.repeat(pa.scalar(value, pa.string()), rows.num_rows))
        return rows


@dataclass(frozen=True)
class LinesSource:
    """JSON files, read some rows at a time. The column types hold the values of all rows."""

    files: InputFiles
    limit: int | None
    schema: pa.Schema = field(init=False)
    _types: pa.Schema = field(init=False)
    _columns: dict[str, set[str]] = field(init=False, default_factory=dict)  # of each file that has rows

    def __post_init__(self) -> None:
        types = infer_schema(self._batches_of_lines())
        object.__setattr__(self, "_types", types)
        object.__setattr__(self, "schema", output_schema(types, self.name))

    @property
    def name(self) -> str:
        return self.files.name

    def files_without(self, column: str) -> list[str]:
        return [path for path, names in self._columns.items() if column not in names]

    def batches(self) -> Iterator[pa.RecordBatch]:
        for lines in self._batches_of_lines():
            batch = to_batch(lines, self._types)
            try:
                yield conform(batch, self.schema)
            except pa.ArrowException as error:
                raise DatasetError(f"{self.name} cannot be carried into the output: {error}. Correct the value") from error

    def _batches_of_lines(self) -> Iterator[list[JsonLine]]:
        lines: list[JsonLine] = []
        size = 0
        for line in islice(self._lines(), self.limit):
            lines.append(line)
            size += line.size
            if len(lines) == BATCH_ROWS or size >= BATCH_BYTES:
                yield lines
                lines = []
                size = 0
        if lines:
            yield lines

    def _lines(self) -> Iterator[JsonLine]:
        for info in self.files.infos:
            for line in json_lines(self.files, info):
                self._columns.setdefault(info.path, set()).update(line.row)
                yield line


def json_lines(files: InputFiles, info: fs.FileInfo) -> Iterator[JsonLine]:
    """Yield the objects of one JSON file, with the columns that its folders name.

    Raises:
        DatasetError: The file has changed or cannot be read.
    """
    partition = files.partition(info)
    try:
        with files.filesystem.open_input_stream(info.path, compression=compression_of(info.path)) as stream:
            for number, line in enumerate(read_objects(io.BufferedReader(stream), info.path)):
                if number % BATCH_ROWS == 0:
                    files.refuse_change(info)
                for name, value in partition.items():
                    line.row.setdefault(name, value)
                yield line
        files.refuse_change(info)
    except DatasetError:
        files.refuse_change(info)
        raise
    except OSError as error:
        raise DatasetError(f"{info.path} cannot be read: {error}. Check the file") from error


def open_source(dataset: Any, limit: int | None = None) -> Source:
    """Open the first `limit` rows of a data set.

    Args:
        dataset: A path or URI, or a table, frame, list of dicts or data set in memory.
        limit: Number of rows; None means all.

    Raises:
        DatasetError: The data set cannot be read.
    """
    if isinstance(dataset, str) or hasattr(dataset, "__fspath__"):
        if has_credentials(str(dataset)):
            raise DatasetError(
                "the data set's URI holds credentials; give credentials in the environment, such as AWS_SECRET_ACCESS_KEY"
            )
        files = find_input_files(str(dataset))
        if len(files.infos) > 1:
            first, last = files.infos[0].path, files.infos[-1].path
            log.info("%s: %d files are read, from %s to %s", files.name, len(files.infos), first, last)
        return LinesSource(files, limit) if files.format == "lines" else TableFilesSource(files, limit)
    return TableSource(f"the given {type(dataset).__name__}", to_table(dataset).slice(0, limit))
