"""Turn the signals that stop a process into one KeyboardInterrupt, at a moment when it can be handled."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

# Ctrl-C; a stopped Ray job or a reclaimed machine; a terminal that was closed.
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def stop_by_signals() -> None:
    """Make SIGTERM and SIGHUP stop a run like Ctrl-C, so that it saves. An ignored SIGHUP (nohup) stays ignored."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)


@contextmanager
def deferred_stops() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM until the end of the block, and ignore SIGHUP in it.

    Ray's native code ends the process if a signal handler raises while Ray starts. Ray's processes inherit that SIGHUP is
    ignored. So a terminal that is closed later does not end the scorers, which must save. In another thread than the main
    one this does nothing, because Python runs handlers in the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    handlers = {number: signal.getsignal(number) for number in STOPS}
    for number, handler in handlers.items():
        if callable(handler):
            waits = signal.SIG_IGN if number == signal.SIGHUP else lambda got, _: arrived.append(got)
            signal.signal(number, waits)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)
    if arrived:
        signal.raise_signal(arrived[0])


def _interrupt(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt
