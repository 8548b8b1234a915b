"""The run directory: what is done is what its part files hold, and no other state decides it.

    OUT/run.json              config, digest, versions, data set and model of the run
    OUT/parts/part-*.parquet  whole questions; a part that exists under its name is complete
    OUT/parts/bad/            parts that were found damaged or another run's; kept, never read
    OUT/lease-*.json          the driver that is at work, while one is
    OUT/merged.parquet        the result, once the run is complete
    OUT/report.html           a page to look at it with
    OUT/events.jsonl          what happened, one JSON object a line; in an object store one events-*.jsonl a session

Owns these names, the refusal to mix two runs, and what a part must pass to count. It does not know what a row means.
OUT may be a local path or a URI that pyarrow's filesystems know (s3://, gs://).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import socket
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from rollout_ray.core.errors import LedgerError
from rollout_ray.core.records import SCHEMA_VERSION
from rollout_ray.core.redaction import shorten
from rollout_ray.storage.folder import CREDENTIALS, Folder, in_parallel
from rollout_ray.storage.lease import EXPIRY_S, PREFIX, RENEW_S, Lease
from rollout_ray.storage.parts import BadPartError, Part, decode_part, encode_part

log = logging.getLogger(__name__)

BAD = "parts/bad"
_EVENTS = re.compile(r"events(-\d{20})?\.jsonl")


@dataclass
class PartScan:
    """What the parts hold: ids of the questions that are done, and the files that were put aside, by name with the
    reason."""

    done: set[str] = field(default_factory=set)
    quarantined: dict[str, str] = field(default_factory=dict)


class RunDirectory(Folder):
    """A run directory; picklable, so that scoring actors write parts into it from other nodes. With it travel the
    driver's lease and, for an object store, the credentials of the driver's environment."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._digest: str | None = None
        self._fence: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        secrets = {} if self.is_local else {k: v for k, v in os.environ.items() if k.startswith(CREDENTIALS)}
        return _received, (self.uri, self._digest, self._fence, secrets)

    @contextmanager
    def lease(self, renew_s: float = RENEW_S, expiry_s: float = EXPIRY_S) -> Iterator[None]:
        """Keeps other drivers out. Raises LedgerError where one is at work. Whatever is written meanwhile, here or by
        an actor that got this object, is refused with a LedgerError once another driver has taken over."""
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
                f"another driver has taken over {self.uri}, since this one did not renew its lease in time (was it "
                "suspended?); this one stops. What it had committed counts; the other driver goes on from there"
            )
        raise LedgerError(
            f"the node {socket.gethostname()} does not see the run in {self.uri}: that path holds other files there, or "
            "none. Give --output_dir a folder that every node shares, or a URI such as s3://bucket/run"
        )

    def _before_publishing(self) -> None:
        self.check_access()

    def _is_visible(self) -> bool:
        """Whether this path leads to the run: it holds its run.json, or the lease of a driver."""
        record = self._read_json("run.json")
        if record is not None and (self._digest is None or _digest_of(record["identity"]) == self._digest):
            return True
        return any(entry.name.startswith(PREFIX) for entry in self.entries())

    def open(self, identity: Mapping[str, Any], description: Mapping[str, Any]) -> bool:
        """Makes the directory the ledger of the run with this identity; returns whether the run was begun before.

        Raises LedgerError where it is another run's, naming every field that differs, or cannot be written. A run that
        has committed nothing gives way: its config was most likely what kept it from it.
        """
        self.make("parts")
        known = self._read_json("run.json")
        self._digest = _digest_of(identity)
        if known is None:
            self._begin(identity, description)
            return False
        if known.get("schema_version") != SCHEMA_VERSION:
            raise LedgerError(
                f"{self.uri} holds a run that another version of rollout_ray began (schema {known.get('schema_version')}, "
                f"this one writes {SCHEMA_VERSION}); give another --output_dir, or go on with that version"
            )
        before = known.get("identity", {})
        changed = [name for name in {**before, **identity} if before.get(name) != identity.get(name)]
        if changed and not self.parts() and not self.exists("merged.parquet"):
            self._begin(identity, description)
            return False
        if changed:
            shown = "; ".join(f"{n} was {_short(before.get(n))} and is {_short(identity.get(n))}" for n in changed[:8])
            raise LedgerError(
                f"{self.uri} holds a run with another config: {shown}. "
                "Give another --output_dir, or the old values to go on"
            )
        self._remove_unfinished()
        return True

    def _begin(self, identity: Mapping[str, Any], description: Mapping[str, Any]) -> None:
        record = {"schema_version": SCHEMA_VERSION, "identity": dict(identity), **description}
        self.write_atomically("run.json", json.dumps(record, indent=1).encode())
        self._remove_unfinished()

    # Parts

    def parts(self) -> list[str]:
        """Names of the committed parts, sorted, which is by the time of their commit."""
        return [entry.name for entry in self.entries("parts") if entry.name.endswith(".parquet")]

    def read_part(self, name: str) -> Part:
        """A part, once it has passed every check. Raises BadPartError (a LedgerError) where it does not."""
        content = self.read(name)
        if content is None:
            raise LedgerError(f"{self.path(name)} has vanished; leave the run directory alone and run again")
        return decode_part(self.path(name), content, self._run_digest())

    def scan_parts(self, known: Set[str]) -> PartScan:
        """Reads every byte of every part and puts aside, in parts/bad, those that are damaged or another run's.

        `known` are the ids of the run's questions; a part with any other is another run's.
        """
        part_scan = PartScan()
        for name, ids, reason in in_parallel(lambda name: self._checked(name, known), self.parts(), self.readers):
            if reason is not None:
                self._quarantine(name)
                part_scan.quarantined[name] = reason
            part_scan.done.update(ids)
        return part_scan

    def done_ids(self) -> set[str]:
        """Ids of the questions that the parts hold. Raises LedgerError for a part that cannot be read."""
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
        return name, [], f"holds the question {unknown}, which the data set does not have"

    def _quarantine(self, name: str) -> None:
        self.make(BAD)
        target = f"{BAD}/{name.rpartition('/')[2]}"
        while self.exists(target):
            target += ".again"
        self.move(name, target)

    def write_part(self, table: pa.Table) -> str:
        """Commits a part and returns its name; when this returns, the part survives a crash of the machine.

        Raises LedgerError where the storage refuses, or another driver has taken the run over; then there is no part.
        """
        name, content = encode_part(table, self._run_digest())
        self.write_atomically(f"parts/{name}", content)
        return f"parts/{name}"

    def _run_digest(self) -> str:
        if self._digest is None:
            self._digest = _digest_of(self.record()["identity"])
        return self._digest

    # Other files

    def _read_json(self, name: str) -> dict[str, Any] | None:
        content = self.read(name)
        try:
            return None if content is None else json.loads(content.to_pybytes())
        except ValueError as error:
            raise LedgerError(f"{self.path(name)} is not JSON ({error}); move it away to start over") from error

    def record(self) -> dict[str, Any]:
        """The content of run.json. Raises LedgerError where there is none."""
        record = self._read_json("run.json")
        if record is None:
            raise LedgerError(f"{self.uri} is not a run directory: it has no run.json; give the --output_dir of a run")
        return record

    def events(self) -> list[dict[str, Any]]:
        """The events of all sessions, oldest first; each has `time` (seconds since 1970) and `event`."""
        names = [entry.name for entry in self.entries() if _EVENTS.fullmatch(entry.name)]
        contents = [content for name in names if (content := self.read(name)) is not None]
        return [json.loads(line) for content in contents for line in content.to_pybytes().splitlines()]

    def _remove_unfinished(self) -> None:
        """Temporary files of writers that were killed."""
        if self.is_local:
            for pattern in ("parts/.part-*.tmp", ".merged.parquet.*.tmp", ".report.html.*.tmp", ".run.json.*.tmp"):
                for leftover in self.local("").glob(pattern):
                    leftover.unlink(missing_ok=True)


def _received(uri: str, digest: str | None, fence: str | None, secrets: Mapping[str, str]) -> RunDirectory:
    os.environ.update(secrets)
    run = RunDirectory(uri)
    run._digest, run._fence = digest, fence
    return run


def _digest_of(identity: Mapping[str, Any]) -> str:
    """Tells the parts of one run from another's."""
    return hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=8).hexdigest()


def _short(value: Any) -> str:
    return shorten(json.dumps(value), 60)
