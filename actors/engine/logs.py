"""Where an engine's own output goes: a log file in the run directory, and the lines of it that belong in a message.

The file takes the output of vLLM's child processes too, which often is the only place that names a cause.
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
    """A log file, and the place in it (bytes) from which on this process writes: an earlier engine may have begun it."""

    path: str
    begin: int

    def root_cause(self) -> str | None:
        """The last error in it that is not a report of another one."""
        for line in reversed(last_lines(self.path, 400, self.begin)):
            found = _ERROR.search(line)
            if found and not is_second_hand(line):
                return found.group(1)
        return None


def redirect_output(path: str) -> Log | None:
    """Sends this process's stdout and stderr, and those of its children, to the end of the file `path`; None where the
    file cannot be made, as on a node that does not share the run directory."""
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
    """Whether vLLM says here only that another of its processes failed."""
    return any(words in text for words in _SECOND_HAND)


def last_lines(path: str, count: int, begin: int = 0) -> list[str]:
    """The last `count` lines after `begin` (bytes) that say something; none where there is no such file."""
    try:
        with open(path, "rb") as stream:
            stream.seek(max(begin, os.path.getsize(path) - TAIL_BYTES))
            text = stream.read().decode(errors="replace")
    except OSError:
        return []
    # A progress bar rewrites its line; what stands last on it is what was seen.
    lines = (line.rstrip("\r").rsplit("\r", 1)[-1].strip() for line in text.split("\n"))
    return list(deque((line for line in lines if line and not line.startswith(":")), maxlen=count))
