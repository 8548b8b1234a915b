"""Make temporary folders, and say what to do where none can be made."""

from __future__ import annotations

import os
import tempfile

from rollout_ray.core.errors import RolloutError


def temporary_folder(prefix: str, parent: str | None = None) -> str:
    """Make a folder that no other user may enter, in `parent` or else where TMPDIR says.

    Raises:
        RolloutError: The disk is full or cannot be written.
    """
    try:
        return tempfile.mkdtemp(prefix=prefix, dir=parent)
    except OSError as error:
        remedy = "make room there" if parent else "make room there, or set TMPDIR to a writable folder"
        where = parent or os.environ.get("TMPDIR", "/tmp")
        raise RolloutError(f"no temporary folder can be made in {where}: {error}; {remedy}") from error
