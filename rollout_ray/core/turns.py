"""Let the threads of a process use something one after the other."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rollout_ray.core.errors import RolloutError

log = logging.getLogger(__name__)


class Turns:
    """A queue of threads in front of `what`."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._lock = threading.Lock()
        self._owner: int | None = None

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until no other thread is in the block.

        Raises:
            RolloutError: This thread is in the block already, as a callback is, and would wait for itself.
        """
        if self._owner == threading.get_ident():
            raise RolloutError(f"{self._what} is in use by this very thread; call it after the present call has returned")
        if not self._lock.acquire(blocking=False):
            log.info("%s is in use by another thread; this call waits for its end", self._what)
            self._lock.acquire()
        self._owner = threading.get_ident()
        try:
            yield
        finally:
            self._owner = None
            self._lock.release()
