"""Opens an input of any supported kind as one stream of Arrow batches that can be read again.

Owns formats and files. It gives the rows no meaning (questions.py does). Files are streamed; what is in memory already
stays there.
"""

from __future__ import annotations

import glob
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from rollout_ray.errors import DatasetError

BATCH_ROWS = 1024


class Source(Protocol):
    """A re-readable stream of rows. `name` is for messages."""

    @property
    def name(self) -> str: ...

    @property
    def schema(self) -> pa.Schema: ...

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows in order, in batches of at most BATCH_ROWS, all of `schema`."""
        ...


@dataclass(frozen=True)
class TableSource:
    """A table in memory."""

    name: str
    table: pa.Table
    schema: pa.Schema = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "schema", self.table.schema)

    def batches(self) -> Iterator[pa.RecordBatch]:
        yield from self.table.to_batches(max_chunksize=BATCH_ROWS)


@dataclass(frozen=True)
class ParquetSource:
    """Parquet files, read one row group after another. Where files differ in a column's type the wider one holds."""

    name: str
    filesystem: fs.FileSystem
    paths: tuple[str, ...]
    schema: pa.Schema
    limit: int | None

    def batches(self) -> Iterator[pa.RecordBatch]:
        left = sys.maxsize if self.limit is None else self.limit
        for path in self.paths:
            try:
                with pq.ParquetFile(path, filesystem=self.filesystem) as file:
                    for batch in file.iter_batches(BATCH_ROWS):
                        kept = batch.slice(0, left)
                        left -= kept.num_rows
                        if kept.num_rows:
                            yield _conform(kept, self.schema)
                        if left == 0:
                            return
            except (pa.ArrowException, OSError) as error:
                raise DatasetError(f"{path} cannot be read: {error}") from error


def open_source(dataset: Any, limit: int | None = None) -> Source:
    """The rows of `dataset`, the first `limit` of them. Raises DatasetError where they cannot be read."""
    if isinstance(dataset, str) or hasattr(dataset, "__fspath__"):
        return _open_path(str(dataset), limit)
    name = f"the given {type(dataset).__name__}"
    try:
        table = _in_memory(dataset)
    except (pa.ArrowException, TypeError) as error:
        raise DatasetError(f"{name} cannot be read as a table: {error}") from error
    return TableSource(name, table.slice(0, limit))


def _in_memory(dataset: Any) -> pa.Table:
    if isinstance(dataset, pa.Table):
        return dataset
    if isinstance(dataset, pa.RecordBatch):
        return pa.Table.from_batches([dataset])
    if isinstance(dataset, Sequence):
        return _from_rows(dataset, lambda number: f"the given list, row {number} (from 0)")
    pandas = sys.modules.get("pandas")
    if pandas and isinstance(dataset, pandas.DataFrame):
        return pa.Table.from_pandas(dataset, preserve_index=False)
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


def _open_path(path: str, limit: int | None) -> Source:
    filesystem, paths = _find_files(path)
    endings = {PurePosixPath(p).suffix for p in paths}
    if endings <= {".jsonl", ".ndjson", ".json"}:
        rows = [row for p in paths for _, row in _read_lines(filesystem, p)]

        def place(number: int) -> str:
            return next(islice((at for p in paths for at, _ in _read_lines(filesystem, p)), number, None))

        return TableSource(path, _from_rows(rows[:limit], place))
    schemas = []
    for found in paths:
        try:
            with pq.ParquetFile(found, filesystem=filesystem) as file:
                schemas.append(file.schema_arrow.remove_metadata())
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(f"{found} cannot be read as parquet: {error}") from error
    try:
        schema = pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException as error:
        raise DatasetError(f"the files of {path} have columns that do not go together: {error}") from error
    return ParquetSource(path, filesystem, tuple(paths), schema, limit)


def _find_files(path: str) -> tuple[fs.FileSystem, list[str]]:
    """The files that a path, folder or glob names, in the order of their names."""
    if "://" in path:
        filesystem, inner = fs.FileSystem.from_uri(path)
    else:
        filesystem, inner = fs.LocalFileSystem(), path
    try:
        if any(c in inner for c in "*?[") and isinstance(filesystem, fs.LocalFileSystem):
            found = sorted(glob.glob(inner, recursive=True))
        elif (info := filesystem.get_file_info(inner)).type == fs.FileType.Directory:
            entries = filesystem.get_file_info(fs.FileSelector(inner, recursive=True))
            found = sorted(e.path for e in entries if e.is_file and e.base_name[:1] not in "._")
            found = [f for f in found if PurePosixPath(f).suffix in (".parquet", ".jsonl", ".ndjson")] or found
        else:
            found = [inner] if info.is_file else []
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    if not found:
        raise DatasetError(f"{path} does not exist or holds no files; give a parquet file, folder or glob, or a JSONL file")
    return filesystem, found


def _read_lines(filesystem: fs.FileSystem, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of every line that is not blank; the place names file and line."""
    with filesystem.open_input_stream(path) as stream:
        for number, line in enumerate(stream.read().split(b"\n"), 1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DatasetError(f"{place}: not JSON ({error})") from error
            if not isinstance(row, dict):
                raise DatasetError(f"{place}: {type(row).__name__} where an object is needed")
            yield place, row


def _from_rows(rows: Sequence[Any], place: Callable[[int], str]) -> pa.Table:
    """A table of dicts; a column that only some rows have is null in the others. `place` names a row in messages."""
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DatasetError(f"{place(number)}: {type(row).__name__} where a dict is needed")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    arrays = []
    for column in columns:
        values = [row.get(column) for row in rows]
        try:
            arrays.append(pa.array(values))
        except (pa.ArrowException, UnicodeError, OverflowError) as error:
            raise DatasetError(f"{place(_first_misfit(values))}, column '{column}': {error}") from error
    return pa.table(arrays, names=columns)


def _first_misfit(values: list[Any]) -> int:
    """The index of the first value that no array can hold together with those before it (by bisection)."""
    low, high = 0, len(values)
    while low + 1 < high:
        middle = (low + high) // 2
        try:
            pa.array(values[:middle])
            low = middle
        except (pa.ArrowException, UnicodeError, OverflowError):
            high = middle
    return high - 1


def _conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    if batch.schema.equals(schema):
        return batch
    columns = [
        batch.column(f.name).cast(f.type) if f.name in batch.schema.names else pa.nulls(batch.num_rows, f.type)
        for f in schema
    ]
    return pa.record_batch(columns, schema=schema)
