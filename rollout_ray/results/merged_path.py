"""Find a merged file and recognize its layout."""

from __future__ import annotations

import os
import re
from pathlib import PurePosixPath

import pyarrow as pa
from pyarrow import fs

from rollout_ray.config.schema import Layout
from rollout_ray.core.errors import LedgerError, VerifyError
from rollout_ray.core.records import SCORES, TRAJECTORY
from rollout_ray.core.redaction import shorten
from rollout_ray.core.user_paths import expand_home
from rollout_ray.data.columns import ID_KEY
from rollout_ray.storage.paths import join_path, split_path
from rollout_ray.storage.refusals import one_line
from rollout_ray.storage.stores import check_contact, open_place

MERGED = "merged.parquet"
TRAJECTORY_FIELDS = tuple(f.name for f in TRAJECTORY)


def layout_of(schema: pa.Schema, path: str) -> Layout:
    """Return the layout that the columns show. Raise VerifyError if a column is missing."""
    names = set(schema.names)
    if "responses" in names and "trajectories" not in names:
        return "responses"
    nested = "trajectories" in names
    wanted = {ID_KEY, *SCORES, *(["trajectories"] if nested else TRAJECTORY_FIELDS)}
    if nested:
        entry = schema.field("trajectories").type
        inside = (
            {f.name for f in entry.value_type}
            if pa.types.is_list(entry) and pa.types.is_struct(entry.value_type)
            else set()
        )
        names |= {f"trajectories.{name}" for name in inside}
        wanted |= {f"trajectories.{name}" for name in TRAJECTORY_FIELDS}
    if missing := sorted(wanted - names):
        raise VerifyError(
            f"{path} has no column {', '.join(missing)}; it is not a merged file, or a column was removed. Merge again"
        )
    return "questions" if nested else "trajectories"


def locate(path: str) -> tuple[fs.FileSystem, str, str]:
    """Locate the merged file that `path` names, or that the folder `path` holds.

    Returns:
        The file system, the path in it, and the full path or URI.

    Raises:
        LedgerError: There is no such file, or it cannot be read.
    """
    path = path if "://" in path else os.path.abspath(expand_home(path))
    try:
        filesystem, inner = open_place(path)
        check_contact(path)
        kind = filesystem.get_file_info(inner).type
        if kind == fs.FileType.Directory:
            inner, path = f"{inner}/{MERGED}", join_path(path, MERGED)
            if filesystem.get_file_info(inner).type == fs.FileType.NotFound:
                raise LedgerError(f"there is no {path}; the run is not complete, run its command again")
    except (pa.ArrowException, OSError) as error:
        reason = shorten(one_line(error), 300)
        raise LedgerError(f"{path} cannot be read: {reason}. Check the path, its permissions and the network") from error
    if kind == fs.FileType.NotFound:
        raise LedgerError(f"there is no {path}; give a run directory or a merged parquet file")
    return filesystem, inner, path


def sibling_path(path: str, digest: str) -> str:
    """Return the path of another version of a merged file: the same folder, and the digest in the name."""
    folder, name = split_path(path)
    stem = re.sub(r"-[0-9a-f]{16}$", "", PurePosixPath(name).stem)
    return join_path(folder, f"{stem}-{digest}.parquet")
