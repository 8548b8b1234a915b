"""Read a checkpoint's weight files into the page cache while vLLM is imported.

The import takes longer than most reads, and keeps a core busy but no disk. Files of more than half of the machine's
memory are left alone: their beginning would leave the cache before vLLM reads it.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

SUFFIXES = (".safetensors", ".bin")
BLOCK = 16 << 20  # bytes a read


def read_ahead(folder: str) -> threading.Thread | None:
    """Start to read the weight files of a local folder in a thread. Returns None if it is too large or no folder."""
    if not os.path.isdir(folder):
        return None
    files = sorted(file for file in Path(folder).iterdir() if file.suffix in SUFFIXES)
    if sum(file.stat().st_size for file in files) > memory_bytes() // 2:
        return None
    thread = threading.Thread(target=_read, args=(files,), name="read ahead", daemon=True)
    thread.start()
    return thread


def _read(files: list[Path]) -> None:
    block = bytearray(BLOCK)
    for file in files:
        try:
            with file.open("rb", buffering=0) as stream:
                while stream.readinto(block):
                    pass
        except OSError:  # vLLM reads the same file next, and reports the error
            return


def memory_bytes() -> int:
    """Return the machine's memory in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
