"""Writes a file that is either whole or not there, and reads a parquet file some rows at a time. It does not know what is
in them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

READ_BYTES = 256 << 20  # of rows, as their file states it, that are read together


def write_whole(
    target: str | Path, write: Callable[[IO[bytes]], Any], before_publishing: Callable[[], None] = lambda: None
) -> None:
    """Lets `write` fill a file beside `target`, which then takes its place in one step and survives a crash of the
    machine.

    Whatever goes wrong before that, in `before_publishing` too, leaves `target` as it was. Makes missing folders. Raises
    OSError, also where `target` is something else than a file (a folder, a device).
    """
    place = Path(os.path.realpath(target))
    if place.exists() and not place.is_file():
        raise OSError(f"{target} is no regular file")
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        before_publishing()
        os.replace(temporary, place)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(place.parent)


def row_batches(file: pq.ParquetFile, most: int, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of the file, at most `most` together, and fewer where they are large. No batch crosses a row group: what
    Arrow joins from two it can hold in one piece only up to 2 GiB a column."""
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        rows = max(1, min(most, READ_BYTES * group.num_rows // max(1, group.total_byte_size)))
        yield from file.iter_batches(rows, row_groups=[number], columns=columns)


def _sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` survive a crash of the machine."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
