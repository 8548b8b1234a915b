"""Store the tags that Ray changes while a node lives, and the launches that were given up, in a file for each cluster.

Lambda's own tags say to which cluster a node belongs. They never change, and this file never overrides them. If the file
is lost, only the progress of nodes in their set-up is lost.
Invariant: each change holds the lock and replaces the whole file, so every reader sees one state.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock


class TagStore:
    """Tags by instance id. Threads and processes of one machine may share the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def tags(self, instance_id: str) -> dict[str, str]:
        """Return the tags that this machine has set for an instance."""
        return dict(self._read()["tags"].get(instance_id, {}))

    def put(self, instance_id: str, tags: Mapping[str, str]) -> None:
        """Add tags of an instance, or replace their values."""
        self._change(lambda state: state["tags"].setdefault(instance_id, {}).update(tags))

    def forget(self, ids: Iterable[str]) -> None:
        """Drop the tags of instances that are gone."""
        ids = set(ids)
        if ids & set(self._read()["tags"]):
            self._change(lambda state: [state["tags"].pop(one, None) for one in ids])

    def give_up(self, launch: str) -> None:
        """Note a launch that was reported as failed. An instance that appears with its mark must be terminated."""
        self._change(lambda state: state["given_up"].append(launch))

    def given_up(self) -> set[str]:
        """Return the marks of launches that were reported as failed."""
        return set(self._read()["given_up"])

    def _read(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads(self._path.read_text())
        except FileNotFoundError:
            return {"tags": {}, "given_up": []}
        return state

    def _change(self, change: Callable[[dict[str, Any]], object]) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(f"{self._path}.lock", mode=0o600):
            state = self._read()
            change(state)
            handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}-")
            with os.fdopen(handle, "w") as file:
                json.dump(state, file)
            os.replace(name, self._path)
