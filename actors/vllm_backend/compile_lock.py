"""Let one engine of a machine compile a model's code while the others wait for it.

The lock and the mark "compiled" lie in the cache that they are about, so clearing the cache clears them. The kernel frees
the lock of a process that dies.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import BaseFileLock, FileLock, Timeout

log = logging.getLogger(__name__)

LONGEST_WAIT_S = 180.0  # for another engine's compilation; then this one compiles for itself
LOOK_S = 0.1


class CompileLock:
    """A context whose body compiles. `leads` is whether the others wait for it."""

    def __init__(self, mark: Path, lock: BaseFileLock | None = None) -> None:
        self._mark, self._lock = mark, lock
        self.leads = lock is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._lock is not None:
            if kind is None:
                self._mark.touch()
            self._lock.release()
            self._lock = None


def acquire_compile_lock(cache: str, what: str, longest_wait_s: float = LONGEST_WAIT_S) -> CompileLock:
    """Return once this process leads, another has compiled `what`, or `longest_wait_s` have passed.

    Args:
        cache: vLLM's cache folder.
        what: Names the code: the GPU, and the hash of vLLM's config.
        longest_wait_s: Seconds to wait for another engine.

    Raises:
        OSError: The folder cannot be written.
    """
    folder = Path(cache) / "rollout_ray"
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.blake2b(what.encode(), digest_size=12).hexdigest()
    mark = folder / f"{name}.compiled"
    if mark.exists():
        return CompileLock(mark)
    lock = FileLock(folder / f"{name}.lock", timeout=longest_wait_s, poll_interval=LOOK_S, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        log.warning("another engine has been compiling for %.0f s; this one compiles for itself", longest_wait_s)
        return CompileLock(mark)
    if mark.exists():
        lock.release()
        return CompileLock(mark)
    return CompileLock(mark, lock)
