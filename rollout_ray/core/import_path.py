"""Order the folders in which a process that we start looks for modules.

Ray puts the driver's working directory in front of its workers' paths, because custom rewards are imported from there. A
module of the user with the name of one of Python's, such as types.py, would otherwise be imported in its place.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterable


def library_first(path: Iterable[str]) -> list[str]:
    """Return the entries of a sys.path with Python's own library in front, and the rest in their order."""
    folders = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}
    folders |= {os.path.join(folder, "lib-dynload") for folder in folders}
    return sorted((str(entry) or os.getcwd() for entry in path), key=lambda entry: entry not in folders)
