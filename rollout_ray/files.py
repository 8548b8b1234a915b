"""Writes a file that is either whole or not there. It does not know what is in it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


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


def _sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` survive a crash of the machine."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
