"""Append the events of a run to events.jsonl, one JSON object per line."""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from rollout_ray.core.errors import LedgerError
from rollout_ray.storage.run_directory import RunDirectory

log = logging.getLogger(__name__)

SAVE_EVENTS_S = 10.0  # a killed driver loses at most these seconds of events in an object store


class EventLog:
    """Appends events to the log of a run directory.

    An object store cannot append. There, each session writes one object, again every SAVE_EVENTS_S and at `close`.
    Methods raise LedgerError if the storage refuses.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._name = "events.jsonl" if run.is_local else f"events-{time.time_ns():020d}.jsonl"
        self._lines: list[str] = []
        self._saved = 0  # lines
        self._saved_at = time.monotonic()
        if run.is_local:
            with run.storage_errors():
                _cut_unfinished_line(run.local(self._name))

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            self.close()
        except LedgerError as error:
            if kind is None:
                raise
            log.warning("the last events are lost: %s", error)

    def write(self, event: str, **fields: Any) -> None:
        """Append one event with the present time. `fields` hold JSON values."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **fields}) + "\n"
        if self._run.is_local:
            with self._run.storage_errors():
                _append_whole(self._run.local(self._name), line.encode())
            return
        self._lines.append(line)
        if time.monotonic() - self._saved_at >= SAVE_EVENTS_S:
            self.close()

    def close(self) -> None:
        """Save the unsaved events. The log stays usable."""
        if self._saved < len(self._lines):
            self._run.write_atomically(self._name, "".join(self._lines).encode())
            self._saved = len(self._lines)
            self._saved_at = time.monotonic()


def _append_whole(path: Path, line: bytes) -> None:
    """Append the whole line, or nothing if the disk is full."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(handle).st_size
        if os.write(handle, line) < len(line):
            os.ftruncate(handle, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(handle)


def _cut_unfinished_line(path: Path) -> None:
    """Remove the half line that a crash of the machine during an append may leave."""
    if not path.exists():
        return
    with path.open("r+b") as stream:
        end = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, end - (1 << 20)))
        tail = stream.read()
        if not tail.endswith(b"\n"):
            stream.truncate(end - len(tail) + tail.rfind(b"\n") + 1)
