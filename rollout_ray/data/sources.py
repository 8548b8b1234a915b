"""Open an input of any supported kind as a stream of Arrow batches that can be read again.

Files are streamed: memory holds one batch, whatever their size. Rows get no meaning here (see question_set.py).
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from rollout_ray.core.errors import DatasetError
from rollout_ray.core.redaction import has_credentials
from rollout_ray.data.arrow_schema import conform, output_schema, united_schema
from rollout_ray.data.input_files import InputFiles, find_input_files
from rollout_ray.data.rows import JsonLine, first_changed, from_rows, infer_schema, read_lines, to_batch
from rollout_ray.storage.files import row_batches

BATCH_ROWS = 1024
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


@dataclass(frozen=True)
class ParquetSource:
    """Parquet files, read one row group at a time. A column that differs between files gets the wider type."""

    files: InputFiles
    limit: int | None
    schema: pa.Schema = field(init=False)

    def __post_init__(self) -> None:
        schemas = []
        for info in self.files.infos:
            try:
                with pq.ParquetFile(info.path, filesystem=self.files.filesystem) as file:
                    schemas.append(file.schema_arrow.remove_metadata())
            except (pa.ArrowException, OSError) as error:
                raise DatasetError(
                    f"{info.path} cannot be read as parquet: {error}; give a parquet or a .jsonl file"
                ) from error
        object.__setattr__(self, "schema", output_schema(united_schema(schemas, self.name), self.name))

    @property
    def name(self) -> str:
        return self.files.name

    def batches(self) -> Iterator[pa.RecordBatch]:
        left = sys.maxsize if self.limit is None else self.limit
        for info in self.files.infos:
            try:
                with pq.ParquetFile(info.path, filesystem=self.files.filesystem) as file:
                    for batch in row_batches(file, BATCH_ROWS):
                        kept = batch.slice(0, left)
                        left -= kept.num_rows
                        self.files.refuse_change(info)
                        if kept.num_rows:
                            yield conform(kept, self.schema)
                        if left == 0:
                            return
            except (pa.ArrowException, OSError) as error:
                self.files.refuse_change(info)
                raise DatasetError(f"{info.path} cannot be read: {error}. Write the file again") from error


@dataclass(frozen=True)
class LinesSource:
    """JSONL files, read some lines at a time. The column types hold the values of all rows."""

    files: InputFiles
    limit: int | None
    schema: pa.Schema = field(init=False)
    _types: pa.Schema = field(init=False)

    def __post_init__(self) -> None:
        types = infer_schema(self._batches_of_lines())
        object.__setattr__(self, "_types", types)
        object.__setattr__(self, "schema", output_schema(types, self.name))

    @property
    def name(self) -> str:
        return self.files.name

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
            try:
                with self.files.filesystem.open_input_stream(info.path, compression=None) as stream:
                    for number, line in enumerate(read_lines(io.BufferedReader(stream), info.path)):
                        if number % BATCH_ROWS == 0:
                            self.files.refuse_change(info)
                        yield line
                self.files.refuse_change(info)
            except DatasetError:
                self.files.refuse_change(info)
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
        return _open_path(str(dataset), limit)
    name = f"the given {type(dataset).__name__}"
    try:
        table = _in_memory(dataset)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DatasetError(f"{name} cannot be read as a table: {_one_line(error)}. Give each column one type") from error
    return TableSource(name, table.slice(0, limit))


def _in_memory(dataset: Any) -> pa.Table:
    if isinstance(dataset, pa.Table):
        return dataset
    if isinstance(dataset, pa.RecordBatch):
        return pa.Table.from_batches([dataset])
    if isinstance(dataset, Sequence):
        return from_rows(dataset, lambda number: f"the given list, row {number} (from 0)")
    pandas = sys.modules.get("pandas")
    if pandas and isinstance(dataset, pandas.DataFrame):
        return _from_pandas(dataset)
    if hasattr(dataset, "with_format") and hasattr(dataset, "num_rows"):  # Hugging Face Dataset
        if isinstance(dataset.num_rows, dict):
            raise DatasetError(f"the given data set has splits; choose one: {', '.join(dataset.num_rows)}")
        table = dataset.with_format("arrow")[:]
        return table.replace_schema_metadata(None)
    if hasattr(dataset, "iter_batches") and hasattr(dataset, "materialize"):  # Ray Dataset
        return pa.concat_tables(
            list(dataset.iter_batches(batch_format="pyarrow", batch_size=None)), promote_options="permissive"
        )
    raise DatasetError(
        f"{type(dataset).__name__} is no kind of input; give a path, a pandas DataFrame, an Arrow table, a list of dicts, "
        "a Hugging Face Dataset or a Ray Dataset"
    )


def _from_pandas(frame: Any) -> pa.Table:
    """Return the columns of a DataFrame, and its index if the index has a name."""
    named = any(level is not None for level in frame.index.names)
    table = pa.Table.from_pandas(frame, preserve_index=named)
    for column in [column for column, kind in frame.dtypes.items() if kind.kind == "O"]:
        name = str(column)
        if (changed := first_changed(table.column(name), frame[column])) is not None:
            raise DatasetError(
                f"the given DataFrame, row {changed} (from 0), column '{name}': the values of this column are of different "
                f"types, and {table.column(name).type} would change this one. Give the column one type"
            )
    return table


def _one_line(error: Exception) -> str:
    """Return the text of an error on one line. pyarrow puts the column of a DataFrame in a second argument."""
    return " ".join(" ".join(map(str, error.args)).split()) if isinstance(error, pa.ArrowException) else str(error)


def _open_path(path: str, limit: int | None) -> Source:
    files = find_input_files(path)
    return LinesSource(files, limit) if files.are_json_lines else ParquetSource(files, limit)
