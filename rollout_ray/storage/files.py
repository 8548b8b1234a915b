"""Write a file that is complete or absent, and read a parquet file in bounded batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rollout_ray.core.user_paths import expand_home

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

READ_BYTES = 256 << 20  # largest batch, by the uncompressed size that the file states


def write_whole(
    target: str | Path, write: Callable[[IO[bytes]], Any], before_publishing: Callable[[], None] = lambda: None
) -> None:
    """Replace `target` in one step by a file that `write` fills. The result survives a crash of the machine.

    Any error before the replacement leaves `target` unchanged. Missing parent folders are created.

    Args:
        target: Path of a regular file, or a free path.
        write: Writes the content to the stream that it receives.
        before_publishing: Runs after the content is complete; may raise to prevent the replacement.

    Raises:
        OSError: The disk refuses, or `target` is a folder or a device.
    """
    place = Path(os.path.realpath(expand_home(str(target))))
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
    """Yield the rows of the file in batches of at most `most` rows and about READ_BYTES.

    No batch crosses a row group: Arrow holds a column that it joins from two groups only up to 2 GiB.
    """
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        rows = max(1, min(most, READ_BYTES * group.num_rows // max(1, group.total_byte_size)))
        yield from file.iter_batches(rows, row_groups=[number], columns=columns)


def _sync_folder(folder: Path) -> None:
    """Flush `folder` to disk, so that a rename in it survives a crash of the machine."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
