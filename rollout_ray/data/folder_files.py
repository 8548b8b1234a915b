"""List the files of a folder and choose the files with its questions.

Not chosen: hidden files, the files of runs, and notes beside the data. A folder of several splits is refused, since
the test split would be drawn and trained on. Reads no rows.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from rollout_ray.core.errors import DatasetError
from rollout_ray.storage.run_directory import is_run_record, is_written_by_run

log = logging.getLogger(__name__)

DATA = (".parquet", ".jsonl", ".ndjson")
OTHER_DATA = re.compile(r"(\.(csv|arrow)|\.(jsonl|ndjson|json|csv)\.(gz|zst|bz2))$")  # read if there is no DATA
IGNORED = ("", ".md", ".txt", ".json", ".yaml", ".yml")  # endings of files that may lie beside the data
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
# The words by which the Hugging Face hub tells splits apart.
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF = {word: split for split, words in _SPLITS.items() for word in words}
_SPLIT = re.compile(rf"(?:^|[-._ /0-9])({'|'.join(sorted(_SPLIT_OF, key=len, reverse=True))})(?=[-._ /0-9]|$)")


def data_files(path: str, filesystem: fs.FileSystem, root: str, found: list[str]) -> list[str]:
    """Return the files of a folder that hold data, and warn about the other files.

    Args:
        path: Name of the folder for messages.
        filesystem: File system of the folder.
        root: Path of the folder in it.
        found: All files below the folder.

    Raises:
        DatasetError: The files are several splits.
    """
    found = without_runs(path, filesystem, root, found, found)
    kept = [file for file in found if _ending(file) in DATA]
    kept = kept or [file for file in found if OTHER_DATA.search(file.lower())] or found
    if left := [file for file in found if file not in set(kept) and _ending(file) not in IGNORED]:
        log.warning("%s: %d file(s) are not read, such as %s", path, len(left), left[0])
    _refuse_splits(path, filesystem, root, kept)
    return kept


def without_runs(path: str, filesystem: fs.FileSystem, root: str, found: list[str], listed: Iterable[str]) -> list[str]:
    """Return the files that no run has written. Run directories may lie in the folder of the data, or be it.

    Args:
        path: Name of the input for messages.
        filesystem: File system of the files.
        root: Folder of the input.
        found: The files of the input.
        listed: Files among which is the run.json of each run directory in or below `root`.
    """
    records = [file for file in listed if os.path.basename(file) == "run.json"]
    runs = [os.path.dirname(record) for record in records if _is_run(filesystem, record)]
    own = {file for file in found if any(_is_of_run(file, run, root) for run in runs)}
    if own:
        log.info("%s: %d file(s) of runs are not read, such as %s", path, len(own), min(own))
    return [file for file in found if file not in own]


def records_above(files: Iterable[str], root: str) -> list[str]:
    """Return the paths of run.json files in the local folders from `root` down to the files."""
    folders: set[str] = set()
    for file in files:
        folder = os.path.dirname(file)
        while folder not in folders and len(os.path.normpath(folder)) >= len(os.path.normpath(root)):
            folders.add(folder)
            if os.path.normpath(folder) == os.path.normpath(root):
                break
            folder = os.path.dirname(folder)
    return [record for folder in folders if os.path.isfile(record := os.path.join(folder, "run.json"))]


def _is_run(filesystem: fs.FileSystem, record: str) -> bool:
    with filesystem.open_input_stream(record) as stream:
        try:
            return is_run_record(json.loads(stream.read()))
        except ValueError:
            return False


def _is_of_run(file: str, run: str, root: str) -> bool:
    """Return whether a file belongs to the run. All files below a run directory do, except where that is the folder."""
    inside = f"{run}/" if run else ""
    if not file.startswith(inside):
        return False
    return os.path.normpath(run) != os.path.normpath(root) or is_written_by_run(file[len(inside) :])


def _refuse_splits(path: str, filesystem: fs.FileSystem, root: str, files: list[str]) -> None:
    """Raise DatasetError if the names of the files or of their folders tell two splits."""
    by_split: dict[str, list[str]] = {}
    examples: dict[str, str] = {}
    for file in files:
        relative = os.path.relpath(file, root) if root else file
        if found := _SPLIT.search(relative.lower()):
            split = _SPLIT_OF[found.group(1)]
            by_split.setdefault(split, []).append(file)
            examples.setdefault(split, _pattern(relative, found.end()))
    if len(by_split) > 1:
        held = ", ".join(f"{split} ({_count(filesystem, its)})" for split, its in by_split.items())
        first = examples.get("train") or next(iter(examples.values()))
        raise DatasetError(
            f"{path} holds the splits {held}. Name the files of one, such as '{path.rstrip('/')}/{first}', or all with "
            f"'{path.rstrip('/')}/**/*{_ending(files[0])}'"
        )


def _pattern(relative: str, end: int) -> str:
    """Return a folder or glob of the files whose names begin like this one, up to `end`."""
    return relative[:end] if relative[end : end + 1] == "/" else f"{relative[:end]}*"


def _count(filesystem: fs.FileSystem, files: list[str]) -> str:
    """Return the number of files in words, and of rows where the files state it."""
    try:
        rows = sum(pq.read_metadata(file, filesystem=filesystem).num_rows for file in files)
    except (pa.ArrowException, OSError):
        return f"{len(files)} file(s)"
    return f"{len(files)} file(s), {rows:,} rows"


def partition_of(path: str, root: str) -> dict[str, str | None]:
    """Return the columns that the folders between `root` and the file name, as in `data_source=gsm8k/0.parquet`."""
    folders = PurePosixPath(os.path.relpath(path, root)).parts[:-1] if root else PurePosixPath(path).parts[:-1]
    pairs = [folder.split("=", 1) for folder in folders if "=" in folder]
    return {unquote(name): None if value == NULL_PARTITION else unquote(value) for name, value in pairs if name}


def remote_files(filesystem: fs.FileSystem, folder: str) -> list[str]:
    """Return the files below a folder of a store, sorted, without hidden ones."""
    selector = fs.FileSelector(folder, recursive=True, allow_not_found=True)
    root = PurePosixPath(filesystem.get_file_info(folder).path)
    paths = [PurePosixPath(entry.path) for entry in filesystem.get_file_info(selector) if entry.is_file]
    return sorted(str(path) for path in paths if not any(_is_hidden(part) for part in path.relative_to(root).parts))


def local_files(folder: str) -> list[str]:
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
    return without_repeats(files)


def without_repeats(paths: Iterable[str]) -> list[str]:
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
