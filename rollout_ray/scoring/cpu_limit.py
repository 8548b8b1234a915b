"""Limit calls by the CPU time of this process, so that a busy machine turns no right answer into a timeout.

It needs the main thread, where Python handles signals. The kernel ends the process where a handler cannot run: inside a
long operation of C code.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

CALLS_PER_TASK = 4


class OutOfTimeError(BaseException):
    """A call used up its CPU time. Sympy and math-verify catch each Exception, so this is none."""


class CpuLimit:
    """Bound each call to `seconds` of CPU time, and all calls of a task to CALLS_PER_TASK times as much."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._begun = 0.0
        self._rang = False
        signal.signal(signal.SIGPROF, self._ring)

    @contextmanager
    def task(self) -> Iterator[None]:
        """Bound the calls of a task, which is the block. The kernel ends the process if the block outlives all limits."""
        self._begun = time.process_time()
        signal.setitimer(signal.ITIMER_VIRTUAL, (CALLS_PER_TASK + 1) * self._seconds + 1)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what the function returns.

        Raises:
            OutOfTimeError: The call or its task has used up its CPU time.
        """
        if time.process_time() - self._begun >= CALLS_PER_TASK * self._seconds:
            raise OutOfTimeError
        self._rang = False
        signal.setitimer(signal.ITIMER_PROF, self._seconds)
        try:
            result = function(*arguments)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        # If a bare `except` swallowed the alarm, the result is half done. Only True survives that.
        if self._rang and result is not True:
            raise OutOfTimeError
        return result

    def _ring(self, number: int, frame: FrameType | None) -> None:
        self._rang = True
        raise OutOfTimeError
