"""Hash the source code of a package, so that a job can tell whether running engines have the same code.

Invariant: a checkout and an installed wheel of the same modules have the same hash, wherever they are.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path


def package_hash() -> str:
    """Return the hash of rollout_ray's modules as they are on this machine."""
    return source_hash(Path(__file__).parent.parent)


def source_hash(package: Path) -> str:
    """Return 16 hex digits that depend on the name and the content of every module below a folder.

    Links to folders count as folders: in a checkout rollout_ray/actors is a link. Compiled modules do not count.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, file in sorted((file.relative_to(package).as_posix(), file) for file in _modules(package)):
        content = file.read_bytes()
        digest.update(f"{name}:{len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _modules(package: Path) -> Iterator[Path]:
    for folder, below, names in os.walk(package, followlinks=True):
        # Python imports from no other folders. An editor's copies are in folders such as .ipynb_checkpoints.
        below[:] = [name for name in below if name.isidentifier() and name != "__pycache__"]
        yield from (Path(folder, name) for name in names if name.endswith(".py"))
