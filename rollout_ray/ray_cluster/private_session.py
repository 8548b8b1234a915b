"""Keep a local Ray to the user that runs it: its token, its sockets, its logs.

Ray writes its token with mode 0644 and its session folders with mode 0777. Another user of the machine could read the
token, join the run and run code as its owner. A local Ray gets a token that no file holds, in a folder of mode 0700.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rollout_ray.core.errors import RolloutError

log = logging.getLogger(__name__)

TOKEN = "RAY_AUTH_TOKEN"
# A socket's path has 107 bytes at most (sun_path). Ray appends its session and the longest of its sockets.
LEAST_FREE = 64 << 20  # bytes; Ray's logs and sockets take less, and a process without room dies without a word
LONGEST_FOLDER = 107 - len("/ray/session_2026-11-30_12-00-00_000000_12345678/sockets/plasma_store")


@contextmanager
def private_session() -> Iterator[str]:
    """Prepare this process's environment for a local Ray. Yield the folder for Ray's sessions.

    Raises:
        RolloutError: The folder cannot be made, or it belongs to another user.
    """
    given = os.environ.get(TOKEN)
    if not given:
        os.environ[TOKEN] = secrets.token_hex(32)
    try:
        yield str(_private_folder())
    finally:
        if not given:
            del os.environ[TOKEN]


def close_to_others(path: Path) -> None:
    """Take all rights on our own file or folder from other users. Log what changes."""
    found = path.stat()
    if found.st_uid == os.getuid() and found.st_mode & 0o077:
        log.warning("%s could be read by other users of this machine; it is its owner's alone now", path)
        path.chmod(stat.S_IMODE(found.st_mode) & 0o700)


def _private_folder() -> Path:
    """Return a folder for Ray's sessions, within one of mode 0700 that is made if it is not there."""
    variable = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    try:
        usual = tempfile.gettempdir()
    except FileNotFoundError as error:  # Python has tried to write into each
        raise RolloutError(
            f"no temporary folder can be written: {error}; make room, or set TMPDIR to another one"
        ) from error
    bases = [os.environ.get("RAY_TMPDIR"), usual, "/tmp"]
    folders = [Path(base) / f"ray-{os.getuid()}" for base in bases if base]
    folder = next((folder for folder in folders if len(os.fsencode(folder)) <= LONGEST_FOLDER), folders[-1])
    if folder != folders[0]:
        log.info("Ray's files go to %s: the path of %s is too long for a socket", folder, folders[0].parent)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = folder.lstat()
    except OSError as error:
        raise RolloutError(
            f"Ray's folder {folder} cannot be made: {error}; set RAY_TMPDIR to a short writable folder"
        ) from error
    if not stat.S_ISDIR(owner.st_mode) or owner.st_uid != os.getuid():
        raise RolloutError(f"{folder} belongs to another user; set RAY_TMPDIR to a folder of your own")
    close_to_others(folder)
    if (free := shutil.disk_usage(folder).free) < LEAST_FREE:
        raise RolloutError(
            f"the disk of {folder} has {free >> 20} MiB free, and Ray needs {LEAST_FREE >> 20} MiB for its files; make "
            f"room, or set {'RAY_TMPDIR' if folder == folders[-1] else variable} to a folder on another disk"
        )
    return folder / "ray"  # Ray gives its own folder mode 0777
