"""Keep a command alive when its output cannot be shown: a closed pipe, a full disk, a terminal that is gone."""

from __future__ import annotations

import io
import os
from typing import Any, TextIO


def shielded(stream: TextIO | None) -> TextIO:
    """Return a stream to the same descriptor that drops all output after the first failed write.

    Python has no stream (None) for a descriptor that was closed before it started. Then all output is dropped.
    """
    if stream is None:
        return open(os.devnull, "w")
    raw = _Descriptor(stream.fileno())
    buffered = io.BufferedWriter(raw)
    return io.TextIOWrapper(
        buffered, stream.encoding, stream.errors, line_buffering=getattr(stream, "line_buffering", True)
    )


class _Descriptor(io.RawIOBase):
    """A file descriptor whose writes never fail. After a failure the descriptor is /dev/null, for native code too."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        try:
            return os.write(self._descriptor, data)
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._descriptor)
            os.close(nowhere)
            return len(data)
