"""Read a path as its user means it."""

from __future__ import annotations

import os


def expand_home(path: str) -> str:
    """Return the path with the home folder in place of a leading `~`, where no shell has put it.

    A shell leaves `~` as it is in quotes, in YAML and behind `--flag=`.
    """
    return os.path.expanduser(path) if path.startswith("~") else path
