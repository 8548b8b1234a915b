"""Where an engine's own output goes: a log file in the run directory, and the lines of it that belong in a message.

The file takes the output of vLLM's child processes too, which often is the only place that names a cause.
"""

from __future__ import annotations

import os
import re
from collections import deque
from pathlib import Path

_ERROR = re.compile(r"\b((?:\w+\.)*\w*(?:Error|Exception): .+)")
_SECOND_HAND = ("Engine core initialization failed", "See root cause above", "WorkerProc initialization failed")
TAIL_BYTES = 65536


def redirect_output(path: str) -> bool:
    """Sends this process's stdout and stderr, and those of its children, to the end of the file `path`; False where the
    file cannot be made, as on a node that does not share the run directory."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError:
        return False
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    return True


def last_lines(path: str, count: int) -> list[str]:
    """The last `count` lines that say something; none where there is no such file."""
    try:
        with open(path, "rb") as stream:
            stream.seek(max(0, os.path.getsize(path) - TAIL_BYTES))
            text = stream.read().decode(errors="replace")
    except OSError:
        return []
    # A progress bar rewrites its line; what stands last on it is what was seen.
    lines = (line.rstrip("\r").rsplit("\r", 1)[-1].strip() for line in text.split("\n"))
    return list(deque((line for line in lines if line and not line.startswith(":")), maxlen=count))


def root_cause(path: str) -> str | None:
    """The last error in a log that is not a report of another one."""
    for line in reversed(last_lines(path, 400)):
        found = _ERROR.search(line)
        if found and not any(words in line for words in _SECOND_HAND):
            return found.group(1)
    return None
