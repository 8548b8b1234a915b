"""Opens an input of any supported kind as one stream of Arrow batches that can be read again.

Owns formats and files. It gives the rows no meaning (questions.py does). Files are streamed; what is in memory already
stays there.
"""

from __future__ import annotations

import glob
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from rollout_ray.core.errors import DatasetError
from rollout_ray.core.redaction import has_credentials
from rollout_ray.data.arrow_schema import conform, output_schema, united_schema
from rollout_ray.data.rows import first_changed, from_rows, read_lines
from rollout_ray.storage.files import row_batches

log = logging.getLogger(__name__)

BATCH_ROWS = 1024
DATA = (".parquet", ".jsonl", ".ndjson")
BESIDE = ("", ".md", ".txt", ".json", ".yaml", ".yml")  # what may lie beside a data set


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
        object.__setattr__(self, "schema", output_schema(self.table.schema, self.name))

    def batches(self) -> Iterator[pa.RecordBatch]:
        try:
            for batch in self.table.to_batches(max_chunksize=BATCH_ROWS):
                yield conform(batch, self.schema)
        except pa.ArrowException as error:
            raise DatasetError(f"{self.name} cannot be carried into the output: {error}") from error


@dataclass(frozen=True)
class ParquetSource:
    """Parquet files, read one row group after another. Where files differ in a column's type the wider one holds."""

    name: str
    filesystem: fs.FileSystem
    files: tuple[fs.FileInfo, ...]
    schema: pa.Schema
    limit: int | None

    def batches(self) -> Iterator[pa.RecordBatch]:
        left = sys.maxsize if self.limit is None else self.limit
        for known in self.files:
            try:
                with pq.ParquetFile(known.path, filesystem=self.filesystem) as file:
                    for batch in row_batches(file, BATCH_ROWS):
                        kept = batch.slice(0, left)
                        left -= kept.num_rows
                        self._refuse_another(known)
                        if kept.num_rows:
                            yield conform(kept, self.schema)
                        if left == 0:
                            return
            except (pa.ArrowException, OSError) as error:
                self._refuse_another(known)
                raise DatasetError(f"{known.path} cannot be read: {error}") from error

    def _refuse_another(self, known: fs.FileInfo) -> None:
        """Rows are known by their place in the input: of another file they would get other rows' trajectories."""
        now = self.filesystem.get_file_info(known.path)
        if (now.size, now.mtime_ns) != (known.size, known.mtime_ns):
            raise DatasetError(
                f"{known.path} was changed while the run read it: its rows may be others than those that were asked; put "
                "the former file back and run the same command again, or give another --output_dir"
            )


def open_source(dataset: Any, limit: int | None = None) -> Source:
    """The rows of `dataset`, the first `limit` of them. Raises DatasetError where they cannot be read."""
    if isinstance(dataset, str) or hasattr(dataset, "__fspath__"):
        if has_credentials(str(dataset)):
            raise DatasetError(
                "the data set's URI holds credentials; give them in the environment, such as AWS_SECRET_ACCESS_KEY"
            )
        return _open_path(str(dataset), limit)
    name = f"the given {type(dataset).__name__}"
    try:
        table = _in_memory(dataset)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DatasetError(f"{name} cannot be read as a table: {_one_line(error)}") from error
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
    """The columns of a DataFrame, and its index where that has a name."""
    named = any(level is not None for level in frame.index.names)
    table = pa.Table.from_pandas(frame, preserve_index=named)
    for column in [column for column, kind in frame.dtypes.items() if kind.kind == "O"]:
        name = str(column)
        if (changed := first_changed(table.column(name), frame[column])) is not None:
            raise DatasetError(
                f"the given DataFrame, row {changed} (from 0), column '{name}': the values of this column are of different "
                f"types, and {table.column(name).type} would change this one; give them one type"
            )
    return table


def _one_line(error: Exception) -> str:
    """An error's text; pyarrow gives what it says of a DataFrame's column as a second argument."""
    return " ".join(" ".join(map(str, error.args)).split()) if isinstance(error, pa.ArrowException) else str(error)


def _open_path(path: str, limit: int | None) -> Source:
    filesystem, paths = _find_files(path)
    endings = {_ending(path) for path in paths}
    if endings <= {".jsonl", ".ndjson", ".json"}:
        rows = [row for p in paths for _, row in _lines(filesystem, p)]

        def place(number: int) -> str:
            return next(islice((at for p in paths for at, _ in _lines(filesystem, p)), number, None))

        return TableSource(path, from_rows(rows[:limit], place))
    schemas = []
    files = filesystem.get_file_info(paths)  # before anything is read
    for found in paths:
        try:
            with pq.ParquetFile(found, filesystem=filesystem) as file:
                schemas.append(file.schema_arrow.remove_metadata())
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(f"{found} cannot be read as parquet: {error}; give a parquet or a .jsonl file") from error
    schema = output_schema(united_schema(schemas, path), path)
    return ParquetSource(path, filesystem, tuple(files), schema, limit)


def _lines(filesystem: fs.FileSystem, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with filesystem.open_input_stream(path, compression=None) as stream:
            content = stream.read()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    return read_lines(content, path)


def _find_files(path: str) -> tuple[fs.FileSystem, list[str]]:
    """The files that a path, folder or glob names, in the order of their names."""
    try:
        if "://" in path:
            filesystem, inner = fs.FileSystem.from_uri(path)
        else:
            filesystem, inner = fs.LocalFileSystem(), path
        info = filesystem.get_file_info(inner)
        is_glob = any(c in inner for c in "*?[") and isinstance(filesystem, fs.LocalFileSystem)
        if info.type == fs.FileType.Directory:
            entries = filesystem.get_file_info(fs.FileSelector(inner, recursive=True))
            found = seen = sorted(e.path for e in entries if e.is_file and not _is_hidden(e.path, info.path))
            found = [f for f in found if _ending(f) in DATA] or found
            if left := [f for f in seen if f not in found and _ending(f) not in BESIDE]:
                log.warning("%s: %d file(s) are not read, such as %s", path, len(left), left[0])
        elif info.is_file:
            found = [inner]
        else:
            found = sorted(f for f in glob.glob(inner, recursive=True) if os.path.isfile(f)) if is_glob else []
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} cannot be read: {error}") from error
    if not found:
        raise DatasetError(f"{path} does not exist or holds no files; give a parquet file, folder or glob, or a JSONL file")
    return filesystem, found


def _ending(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def _is_hidden(path: str, folder: str) -> bool:
    """Whether a file, or a folder that it is in below `folder`, is one that other programs keep for themselves."""
    return any(part[:1] in "._" for part in PurePosixPath(path).relative_to(folder).parts)
