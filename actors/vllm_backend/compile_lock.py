"""Who compiles: of the engines of a machine that need the same code at the same time, one, while the others wait for it.

Owns the lock, which the kernel frees with its process, and the mark that says it was done; both lie in the cache whose
content they are about, so that clearing it clears them. What is compiled is worker.py's.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

log = logging.getLogger(__name__)

LONGEST_WAIT_S = 180.0  # for another engine's compilation; then this one compiles for itself
LOOK_S = 0.1


class CompileLock:
    """Where `leads` is set, the body of the `with` statement is to make what others wait for."""

    def __init__(self, mark: Path, lock: int | None = None) -> None:
        self._mark, self._lock = mark, lock
        self.leads = lock is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._lock is not None:
            if kind is None:
                self._mark.touch()
            os.close(self._lock)
            self._lock = None


def acquire_compile_lock(cache: str, what: str, longest_wait_s: float = LONGEST_WAIT_S) -> CompileLock:
    """Returns once this process is the one to make `what` in the folder `cache`, or another has made it, or
    `longest_wait_s` have passed. Raises OSError where the folder cannot be written."""
    folder = Path(cache) / "rollout_ray"
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.blake2b(what.encode(), digest_size=12).hexdigest()
    mark = folder / f"{name}.compiled"
    if mark.exists():
        return CompileLock(mark)
    lock = os.open(folder / f"{name}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
    deadline = time.monotonic() + longest_wait_s
    while not _locked(lock):
        if time.monotonic() > deadline:
            log.warning("another engine has been compiling for %.0f s; this one compiles for itself", longest_wait_s)
            os.close(lock)
            return CompileLock(mark)
        time.sleep(LOOK_S)
    if mark.exists():
        os.close(lock)
        return CompileLock(mark)
    return CompileLock(mark, lock)


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
