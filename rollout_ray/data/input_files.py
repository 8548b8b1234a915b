"""Find the files that a path, folder, glob or URI names.

Each file is read once, whatever links lead to it. A folder's choice is in folder_files.py.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

import pyarrow as pa
from pyarrow import fs

from rollout_ray.core.errors import DatasetError
from rollout_ray.core.redaction import shorten
from rollout_ray.core.user_paths import expand_home
from rollout_ray.data.folder_files import (
    data_files,
    local_files,
    partition_of,
    records_above,
    remote_files,
    without_repeats,
    without_runs,
)
from rollout_ray.storage.refusals import one_line
from rollout_ray.storage.stores import check_contact, client_errors, open_place

# Endings of files that can be read, and the format of each.
FORMATS = {".parquet": "parquet", ".jsonl": "lines", ".ndjson": "lines", ".json": "lines", ".csv": "csv", ".arrow": "arrow"}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}


@dataclass(frozen=True)
class InputFiles:
    """The files of one input, sorted by name, with size and time of change before the first read.

    Attributes:
        root: Folder below which the names of folders give columns, as in `data_source=gsm8k/0.parquet`.
    """

    name: str
    filesystem: fs.FileSystem
    infos: tuple[fs.FileInfo, ...]
    root: str

    @property
    def format(self) -> str:
        """Return the format of the files. Raise DatasetError if they have several."""
        formats = {format_of(info.path): info.path for info in self.infos}
        if len(formats) > 1:
            one, other, *_ = sorted(formats.values())
            raise DatasetError(
                f"{self.name} names files of several formats: {one} and {other}. Name the files of one format, such as "
                f"'{PurePosixPath(one).parent}/*{PurePosixPath(one).suffix}'"
            )
        return next(iter(formats))

    def partition(self, info: fs.FileInfo) -> Mapping[str, str | None]:
        """Return the columns that the folders of a file give all its rows."""
        return partition_of(info.path, self.root)

    def refuse_change(self, known: fs.FileInfo) -> None:
        """Raise DatasetError if a file has changed.

        Rows are identified by their place in the input. In a changed file, they would get trajectories of other rows.
        """
        now = self.filesystem.get_file_info(known.path)
        if (now.size, now.mtime_ns) != (known.size, known.mtime_ns):
            raise DatasetError(
                f"{known.path} was changed while the run read it, so its rows may differ from those that were asked. Put "
                "the former file back and run the same command again, or give another --output_dir"
            )


def format_of(path: str) -> str:
    """Return the format of a file by its name. Unknown endings count as parquet."""
    return FORMATS.get(_plain(path).suffix.lower(), "parquet")


def compression_of(path: str) -> str | None:
    """Return the compression of a file by its name."""
    return COMPRESSIONS.get(PurePosixPath(path).suffix.lower())


def _plain(path: str) -> PurePosixPath:
    """Return the path without the ending of a compression."""
    return PurePosixPath(path).with_suffix("") if compression_of(path) else PurePosixPath(path)


def find_input_files(path: str) -> InputFiles:
    """Return the files that `path` names.

    Args:
        path: A file, folder or glob, or a URI of one.

    Raises:
        DatasetError: The file is missing, the folder holds several splits, or the storage cannot be read.
    """
    path = expand_home(path)
    try:
        filesystem, inner = open_place(path)
        check_contact(path)
        with client_errors():
            found, root = _find(path, filesystem, inner)
        if not found:
            raise DatasetError(
                f"{path} does not exist or holds no files; give a parquet file, folder or glob, or a JSONL file"
            )
        return InputFiles(path, filesystem, tuple(filesystem.get_file_info(found)), root)
    except (pa.ArrowException, OSError) as error:
        reason = shorten(one_line(error), 300)
        raise DatasetError(f"{path} cannot be read: {reason}. Check the path, its permissions and the network") from error


def _find(path: str, filesystem: fs.FileSystem, inner: str) -> tuple[list[str], str]:
    """Return the paths of the files, sorted, and the folder that `InputFiles.root` describes."""
    is_local = isinstance(filesystem, fs.LocalFileSystem)
    info = filesystem.get_file_info(inner)
    if info.type == fs.FileType.Directory:
        found = local_files(inner) if is_local else remote_files(filesystem, inner)
        return data_files(path, filesystem, inner if is_local else info.path, found), inner if is_local else info.path
    if info.is_file:
        return [inner], str(PurePosixPath(inner).parent)
    if not any(c in inner for c in "*?["):
        return [], inner
    root = _before_wildcards(inner)
    if is_local:
        found = without_repeats(f for f in glob.glob(inner, recursive=True) if os.path.isfile(f))
        return without_runs(path, filesystem, root, found, records_above(found, root)), root
    listed = remote_files(filesystem, root)
    found = [file for file in listed if _matches(file, inner)]
    return without_runs(path, filesystem, root, found, listed), root


def _before_wildcards(pattern: str) -> str:
    """Return the folder of a glob: its parts before the first one with a wildcard."""
    parts = PurePosixPath(pattern).parts
    first = next(number for number, part in enumerate(parts) if any(c in part for c in "*?["))
    return str(PurePosixPath(*parts[:first]))


def _matches(path: str, pattern: str) -> bool:
    """Return whether the path of a store's file fits a glob. `*` does not cross a slash, except in `**`."""
    if "**" in pattern:
        return fnmatchcase(path, pattern.replace("**/", "*"))
    parts, patterns = path.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))
