"""Send the output of an engine to a log file, and find the lines of it that belong in a message.

The file has the output of vLLM's child processes too. Often only they name a cause.
"""

from __future__ import annotations

import os
import re
from collections import deque
from dataclasses import dataclass
from pathlib import Path

_ERROR = re.compile(r"\b((?:\w+\.)*\w*(?:Error|Exception): .+)")
_SECOND_HAND = (
    "Engine core initialization failed",
    "See root cause above",
    "WorkerProc initialization failed",
    "EngineCore encountered an issue",
)
TAIL_BYTES = 65536


@dataclass(frozen=True)
class Log:
    """A log file, and the byte from which on this process writes. An earlier engine may have begun the file."""

    path: str
    begin: int

    def root_cause(self) -> str | None:
        """Return the last error in the log that is not a report of another error."""
        for line in reversed(last_lines(self.path, 400, self.begin)):
            found = _ERROR.search(line)
            if found and not is_second_hand(line):
                return found.group(1)
        return None


def redirect_output(path: str) -> Log | None:
    """Send stdout and stderr of this process and its children to the end of a file.

    Returns None if the file cannot be made, as on a node that does not share the run directory.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError:
        return None
    begin = os.fstat(file).st_size
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    return Log(path, begin)


def is_second_hand(text: str) -> bool:
    """Return whether vLLM says here only that another of its processes failed."""
    return any(words in text for words in _SECOND_HAND)


def last_lines(path: str, count: int, begin: int = 0) -> list[str]:
    """Return the last `count` lines after the byte `begin` that say something. A missing file has none."""
    try:
        with open(path, "rb") as stream:
            stream.seek(max(begin, os.path.getsize(path) - TAIL_BYTES))
            text = stream.read().decode(errors="replace")
    except OSError:
        return []
    # A progress bar rewrites its line, and the reader saw the last state.
    lines = (line.rstrip("\r").rsplit("\r", 1)[-1].strip() for line in text.split("\n"))
    return list(deque((line for line in lines if line and not line.startswith(":")), maxlen=count))
