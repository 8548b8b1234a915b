"""Find the files that a path, folder, glob or URI names.

Each file is read once, whatever links lead to it. Opens no file.
"""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa
from pyarrow import fs

from rollout_ray.core.errors import DatasetError

log = logging.getLogger(__name__)

DATA = (".parquet", ".jsonl", ".ndjson")
IGNORED = ("", ".md", ".txt", ".json", ".yaml", ".yml")  # endings of files that may lie beside the data
LINES = frozenset((".jsonl", ".ndjson", ".json"))


@dataclass(frozen=True)
class InputFiles:
    """The files of one input, sorted by name, with size and time of change before the first read."""

    name: str
    filesystem: fs.FileSystem
    infos: tuple[fs.FileInfo, ...]

    @property
    def are_json_lines(self) -> bool:
        return {_ending(info.path) for info in self.infos} <= LINES

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


def find_input_files(path: str) -> InputFiles:
    """Return the files that `path` names.

    Args:
        path: A file, folder or glob, or a URI of a file or folder.

    Raises:
        DatasetError: There is no such file, or the storage cannot be read.
    """
    try:
        if "://" in path:
            filesystem, inner = fs.FileSystem.from_uri(path)
        else:
            filesystem, inner = fs.LocalFileSystem(), path
        is_local = isinstance(filesystem, fs.LocalFileSystem)
        info = filesystem.get_file_info(inner)
        if info.type == fs.FileType.Directory:
            found = _data_files(path, _local_files(inner) if is_local else _remote_files(filesystem, inner))
        elif info.is_file:
            found = [inner]
        elif is_local and any(c in inner for c in "*?["):
            found = _without_repeats(f for f in glob.glob(inner, recursive=True) if os.path.isfile(f))
        else:
            found = []
        if not found:
            raise DatasetError(
                f"{path} does not exist or holds no files; give a parquet file, folder or glob, or a JSONL file"
            )
        return InputFiles(path, filesystem, tuple(filesystem.get_file_info(found)))
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} cannot be read: {error}. Check the path and its permissions") from error


def _data_files(path: str, found: list[str]) -> list[str]:
    """Return the files of a folder that hold data, and warn about the other files."""
    kept = [file for file in found if _ending(file) in DATA] or found
    if left := [file for file in found if file not in kept and _ending(file) not in IGNORED]:
        log.warning("%s: %d file(s) are not read, such as %s", path, len(left), left[0])
    return kept


def _remote_files(filesystem: fs.FileSystem, folder: str) -> list[str]:
    selector = fs.FileSelector(folder, recursive=True)
    root = PurePosixPath(filesystem.get_file_info(folder).path)
    paths = [PurePosixPath(entry.path) for entry in filesystem.get_file_info(selector) if entry.is_file]
    return sorted(str(path) for path in paths if not any(_is_hidden(part) for part in path.relative_to(root).parts))


def _local_files(folder: str) -> list[str]:
    """Return the files below a folder. Links are followed, but each folder is entered once: a link may form a loop."""
    files: list[str] = []
    entered: set[str] = set()
    folders = [folder]
    links: list[str] = []
    while folders or links:
        current = folders.pop() if folders else links.pop(0)  # real folders first, so that files keep their own names
        if (real := os.path.realpath(current)) in entered:
            continue
        entered.add(real)
        for entry in os.scandir(current):
            if _is_hidden(entry.name):
                continue
            if entry.is_dir():
                (links if entry.is_symlink() else folders).append(entry.path)
            elif entry.is_file():
                files.append(entry.path)
    return _without_repeats(files)


def _without_repeats(paths: Iterable[str]) -> list[str]:
    """Return the paths, sorted, without links to a file that another path names."""
    by_file: dict[str, str] = {}
    for path in sorted(paths, key=lambda path: (os.path.islink(path), len(path), path)):
        by_file.setdefault(os.path.realpath(path), path)
    return sorted(by_file.values())


def _ending(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def _is_hidden(name: str) -> bool:
    """Return whether other programs keep a file or folder of this name for themselves."""
    return name[:1] in "._"
