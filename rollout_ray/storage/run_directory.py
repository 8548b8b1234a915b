"""Manage a run directory. Its part files alone decide which questions are done.

    OUT/run.json              config, digest, versions, data set and model of the run
    OUT/parts/part-*.parquet  whole questions; a part with its final name is complete
    OUT/parts/bad/            quarantined parts: damaged or of another run; kept, never read
    OUT/partial/              samples of questions that are not complete (partial_files.py); no merge reads them
    OUT/lease-*.json          the driver that works on the run
    OUT/merged.parquet        the result of a complete run
    OUT/report.html           the report
    OUT/events.jsonl          events, one JSON object per line; an object store has one events-*.jsonl per session

OUT is a local path or a URI of pyarrow's filesystems (s3://, gs://). Two runs never share a directory.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from rollout_ray.core.errors import LedgerError
from rollout_ray.core.records import schema_version
from rollout_ray.core.redaction import shorten
from rollout_ray.storage.folder import CREDENTIALS, Folder
from rollout_ray.storage.lease import EXPIRY_S, PREFIX, RENEW_S, Lease
from rollout_ray.storage.parallel import in_parallel
from rollout_ray.storage.parts import PART_SCHEMAS, BadPartError, Part, decode_part, encode_part

log = logging.getLogger(__name__)

BAD = "parts/bad"
_UNFINISHED = ("parts/.part-*.tmp", "partial/.*.tmp", ".merged.parquet.*.tmp", ".report.html.*.tmp", ".run.json.*.tmp")
_EVENTS = re.compile(r"events(-\d{20})?\.jsonl")
_WRITTEN = re.compile(
    rf"(parts|partial|logs)/.*|run\.json|{_EVENTS.pattern}|{PREFIX}.*\.json|merged(-[0-9a-f]{{16}})?\.parquet|report\.html"
)


@dataclass
class PartScan:
    """Ids of the questions that the parts hold, and the reason for each quarantined file, by file name."""

    done: set[str] = field(default_factory=set)
    quarantined: dict[str, str] = field(default_factory=dict)


class RunDirectory(Folder):
    """A run directory. Scoring actors on other nodes receive a pickled copy and write parts into it.

    The pickle holds the driver's lease and, for an object store, the credentials from the driver's environment.
    """

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._digest: str | None = None
        self._fence: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        secrets = {} if self.is_local else {k: v for k, v in os.environ.items() if k.startswith(CREDENTIALS)}
        return _unpickle, (self.uri, self._digest, self._fence, secrets)

    @contextmanager
    def lease(self, renew_s: float = RENEW_S, expiry_s: float = EXPIRY_S) -> Iterator[None]:
        """Keep other drivers out for the duration of the context.

        Later writes, here or by an actor with a copy, raise LedgerError if another driver has taken over.

        Raises:
            LedgerError: Another driver works on this run.
        """
        self.check_contact()
        with Lease(Folder(self.uri), renew_s, expiry_s) as lease:
            self._fence = lease.name
            try:
                yield
            finally:
                self._fence = None

    def check_access(self) -> None:
        """Check that this process may write to the run directory.

        Raises:
            LedgerError: This node does not see the folder, or another driver has taken over the run.
        """
        if self._fence is None or self.exists(self._fence):
            return
        if self._is_visible():
            raise LedgerError(
                f"another driver has taken over {self.uri}: this one did not renew its lease in time (was it suspended?). "
                "This driver stops. Its committed parts count, and the other driver resumes from them"
            )
        raise LedgerError(
            f"the node {socket.gethostname()} does not see the run in {self.uri}: that path holds other files there, or "
            "none. Give --output_dir a folder that every node shares, or a URI such as s3://bucket/run"
        )

    def _before_publishing(self) -> None:
        self.check_access()

    def _is_visible(self) -> bool:
        """Return whether this path holds the run: its run.json, or the lease of a driver."""
        record = self._read_json("run.json")
        if record is not None and (self._digest is None or _digest_of(record["identity"]) == self._digest):
            return True
        return any(entry.name.startswith(PREFIX) for entry in self.entries())

    def open(self, identity: Mapping[str, Any], description: Mapping[str, Any]) -> bool:
        """Bind the directory to the run with this identity. Return whether the run existed before.

        A run that saved nothing gives way to a new identity: its config was most likely wrong.

        Args:
            identity: Dotted names and values of the fields that decide the rows.
            description: Further JSON values for run.json.

        Raises:
            LedgerError: The directory holds another run (the text names the changed fields) or cannot be written.
        """
        self.make("parts")
        known = self._read_json("run.json")
        self._digest = _digest_of(identity)
        if known is None:
            self._begin(identity, description)
            return False
        supported = (schema_version(tokens=False), schema_version(tokens=True))
        if known.get("schema_version") not in supported:
            raise LedgerError(
                f"{self.uri} holds a run that another version of rollout_ray began (schema {known.get('schema_version')}, "
                f"this one writes {supported[0]} or {supported[1]}). Give another --output_dir, or resume with that version"
            )
        before = known.get("identity", {})
        changed = [name for name in {**before, **identity} if before.get(name) != identity.get(name)]
        if changed and not (self.parts() or self.partial_files() or self.exists("merged.parquet")):
            self._begin(identity, description)
            return False
        if changed:
            said = {"data.fingerprint": _other_questions(known, description)}
            differences = "; ".join(
                said.get(n, f"{n} was {_short(before.get(n))} and is {_short(identity.get(n))}") for n in changed[:8]
            )
            raise LedgerError(
                f"{self.uri} holds a run with another config: {differences}. "
                "Give another --output_dir, or the old values to resume"
            )
        self._remove_unfinished()
        return True

    def _begin(self, identity: Mapping[str, Any], description: Mapping[str, Any]) -> None:
        version = schema_version(bool(identity.get("output.tokens")))
        record = {"schema_version": version, "identity": dict(identity), **description}
        self.write_atomically("run.json", json.dumps(record, indent=1).encode())
        self._remove_unfinished()

    # Parts

    def parts(self) -> list[str]:
        """Return the names of the committed parts, sorted by commit time."""
        return [entry.name for entry in self.entries("parts") if entry.name.endswith(".parquet")]

    def partial_files(self) -> list[str]:
        """Return the names of the files with samples of questions that are not complete, sorted by time."""
        return [entry.name for entry in self.entries("partial") if entry.name.endswith(".parquet")]

    def read_part(self, name: str, schemas: Sequence[pa.Schema] = PART_SCHEMAS) -> Part:
        """Return a part that passed every check. Raise BadPartError (a LedgerError) if one fails."""
        content = self.read(name)
        if content is None:
            raise LedgerError(
                f"{self.path(name)} has vanished while the run used it. Change nothing in the run directory, and run again"
            )
        return decode_part(self.path(name), content, self.run_digest(), schemas)

    def scan_parts(self, known: Set[str]) -> PartScan:
        """Read every byte of every part. Move damaged parts and parts of another run to parts/bad.

        Args:
            known: Ids of the questions of this run. A part with any other id belongs to another run.
        """
        part_scan = PartScan()
        for name, ids, reason in in_parallel(lambda name: self._checked(name, known), self.parts(), self.readers):
            if reason is not None:
                self.quarantine(name)
                part_scan.quarantined[name] = reason
            part_scan.done.update(ids)
        return part_scan

    def done_ids(self) -> set[str]:
        """Return the ids of the questions in the parts. Raise LedgerError if a part cannot be read."""
        done: set[str] = set()
        for ids in in_parallel(lambda name: self.read_part(name).ids(), self.parts(), self.readers):
            done.update(ids)
        return done

    def _checked(self, name: str, known: Set[str]) -> tuple[str, list[str], str | None]:
        try:
            ids = self.read_part(name).ids()
        except BadPartError as error:
            return name, [], error.reason
        unknown = next((question_id for question_id in ids if question_id not in known), None)
        if unknown is None:
            return name, ids, None
        return name, [], f"holds the question {unknown}, which is not in the data set"

    def quarantine(self, name: str) -> None:
        """Move a part to parts/bad."""
        self.make(BAD)
        target = f"{BAD}/{name.rpartition('/')[2]}"
        while self.exists(target):
            target += ".again"
        self.move(name, target)

    def write_part(self, table: pa.Table) -> str:
        """Commit a part that survives a crash of the machine, and return its name.

        Raises:
            LedgerError: The storage refuses, or another driver has taken over. No part is left.
        """
        name, content = encode_part(table, self.run_digest())
        self.write_atomically(f"parts/{name}", content)
        return f"parts/{name}"

    def run_digest(self) -> str:
        """Return the digest of the run's identity, which every part carries."""
        if self._digest is None:
            self._digest = _digest_of(self.record()["identity"])
        return self._digest

    # Other files

    def _read_json(self, name: str) -> dict[str, Any] | None:
        content = self.read(name)
        try:
            return None if content is None else json.loads(content.to_pybytes())
        except ValueError as error:
            raise LedgerError(f"{self.path(name)} is not JSON ({error}). Move it away to start over") from error

    def record(self) -> dict[str, Any]:
        """Return the content of run.json. Raise LedgerError if the file does not exist."""
        record = self._read_json("run.json")
        if record is None:
            raise LedgerError(f"{self.uri} is not a run directory: it has no run.json. Give the --output_dir of a run")
        return record

    def events(self) -> list[dict[str, Any]]:
        """Return the events of all sessions, oldest first. Each has `time` (Unix seconds) and `event`."""
        names = [entry.name for entry in self.entries() if _EVENTS.fullmatch(entry.name)]
        contents = [content for name in names if (content := self.read(name)) is not None]
        return [json.loads(line) for content in contents for line in content.to_pybytes().splitlines()]

    def _remove_unfinished(self) -> None:
        """Delete the temporary files of killed writers."""
        if self.is_local:
            for pattern in _UNFINISHED:
                for leftover in self.local("").glob(pattern):
                    leftover.unlink(missing_ok=True)


def is_run_record(value: Any) -> bool:
    """Return whether a JSON value is the content of a run.json."""
    return isinstance(value, dict) and {"schema_version", "identity"} <= value.keys()


def is_written_by_run(name: str) -> bool:
    """Return whether a run writes a file of this name, relative to its run directory."""
    return _WRITTEN.fullmatch(name) is not None


def _unpickle(uri: str, digest: str | None, fence: str | None, secrets: Mapping[str, str]) -> RunDirectory:
    os.environ.update(secrets)
    run = RunDirectory(uri)
    run._digest = digest
    run._fence = fence
    return run


def _digest_of(identity: Mapping[str, Any]) -> str:
    """Return the digest that parts carry to show which run they belong to."""
    return hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=8).hexdigest()


def _other_questions(known: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say how the questions of two descriptions of a run differ."""
    counts = [description.get("dataset", {}).get("questions") for description in (known, now)]
    if None in counts or counts[0] == counts[1]:
        return "the questions are others: a prompt, a gold answer or an id has changed"
    return f"the number of questions was {counts[0]} and is {counts[1]}"


def _short(value: Any) -> str:
    return shorten(json.dumps(value), 60)
