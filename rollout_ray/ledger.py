"""The run directory: what is done is what its part files hold, and no other state decides it.

    OUT/run.json              config, digest, versions, data set and model of the run
    OUT/parts/part-*.parquet  whole questions; a part that exists under its name is complete
    OUT/merged.parquet        the result, once the run is complete
    OUT/events.jsonl          what happened, one JSON object a line

Owns these names, atomic writing and the refusal to mix two runs. It does not know what a row means. OUT may be a local
path or a URI that pyarrow's filesystems know (s3://, gs://).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from rollout_ray.errors import LedgerError
from rollout_ray.records import SCHEMA_VERSION

PART_ROW_GROUP = 128  # questions; small, so that the merge can hold many parts' heads at once


@dataclass
class RunDirectory:
    """A run directory; picklable, so that scoring actors write parts into it from other nodes."""

    uri: str
    _filesystem: fs.FileSystem = field(init=False, repr=False)
    _root: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if "://" in self.uri:
            self._filesystem, self._root = fs.FileSystem.from_uri(self.uri)
        else:
            self.uri = os.path.abspath(self.uri)
            self._filesystem, self._root = fs.LocalFileSystem(), self.uri

    def __reduce__(self) -> tuple[type[RunDirectory], tuple[str]]:
        return RunDirectory, (self.uri,)

    @property
    def is_local(self) -> bool:
        return isinstance(self._filesystem, fs.LocalFileSystem)

    def path(self, name: str) -> str:
        """`name` inside the directory, in the form that a user would open."""
        return f"{self.uri.rstrip('/')}/{name}"

    def _inner(self, name: str) -> str:
        return f"{self._root}/{name}"

    def open(self, identity: Mapping[str, Any], description: Mapping[str, Any]) -> bool:
        """Makes the directory the ledger of the run with this identity; returns whether the run was begun before.

        Raises LedgerError where it is another run's, naming every field that differs, or cannot be written.
        """
        try:
            self._filesystem.create_dir(self._inner("parts"), recursive=True)
            known = self._read_json("run.json")
            if known is None:
                record = {"schema_version": SCHEMA_VERSION, "identity": dict(identity), **description}
                self.write_atomically("run.json", json.dumps(record, indent=1).encode())
        except OSError as error:
            raise LedgerError(f"the run directory {self.uri} cannot be written: {error}") from error
        if known is None:
            return False
        before = known.get("identity", {})
        changed = [name for name in {**before, **identity} if before.get(name) != identity.get(name)]
        if changed:
            shown = "; ".join(f"{n} was {_short(before.get(n))} and is {_short(identity.get(n))}" for n in changed[:8])
            raise LedgerError(
                f"{self.uri} holds a run with another config: {shown}. "
                "Give another --output_dir, or the old values to go on"
            )
        self._remove_unfinished()
        return True

    def parts(self) -> list[str]:
        """Names of the committed parts, sorted."""
        entries = self._filesystem.get_file_info(fs.FileSelector(self._inner("parts"), allow_not_found=True))
        return sorted(f"parts/{e.base_name}" for e in entries if e.is_file and e.base_name.endswith(".parquet"))

    def done_ids(self) -> set[str]:
        """Ids of the questions that the parts hold. Raises LedgerError for a part that cannot be read."""
        done: set[str] = set()
        for part in self.parts():
            with self.open_parquet(part) as file:
                done.update(file.read(columns=["question_id"]).column(0).to_pylist())
        return done

    def open_parquet(self, name: str) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self._inner(name), filesystem=self._filesystem)
        except (pa.ArrowException, OSError) as error:
            raise LedgerError(f"{self.path(name)} cannot be read ({error}); move it away and run again") from error

    def write_part(self, table: pa.Table) -> str:
        """Commits a part and returns its name; when this returns, the part survives a crash of the machine."""
        name = f"parts/part-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.parquet"

        def write(stream: IO[bytes]) -> None:
            pq.write_table(table, stream, row_group_size=PART_ROW_GROUP, compression="zstd")

        self.write_atomically(name, write)
        return name

    def write_atomically(self, name: str, content: bytes | Callable[[IO[bytes]], None]) -> None:
        """Writes a file that is either whole or not there: temporary name, fsync, rename. An object store needs no
        rename, since an object appears when its upload is complete."""
        write = content if callable(content) else (lambda stream: _write_all(stream, content))
        if not self.is_local:
            with self._filesystem.open_output_stream(self._inner(name)) as stream:
                write(stream)
            return
        target = Path(self._inner(name))
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as stream:
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        directory = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _read_json(self, name: str) -> dict[str, Any] | None:
        if self._filesystem.get_file_info(self._inner(name)).type == fs.FileType.NotFound:
            return None
        with self._filesystem.open_input_stream(self._inner(name)) as stream:
            try:
                return json.loads(stream.read())  # type: ignore[no-any-return]
            except ValueError as error:
                raise LedgerError(f"{self.path(name)} is not JSON ({error}); move it away to start over") from error

    def record(self) -> dict[str, Any]:
        """The content of run.json. Raises LedgerError where there is none."""
        record = self._read_json("run.json")
        if record is None:
            raise LedgerError(f"{self.uri} is not a run directory: it has no run.json")
        return record

    def _remove_unfinished(self) -> None:
        """Temporary files of writers that were killed."""
        if self.is_local:
            for folder in (Path(self._root), Path(self._root) / "parts"):
                for leftover in folder.glob(".*.tmp"):
                    leftover.unlink(missing_ok=True)


class EventLog:
    """Appends to events.jsonl; on an object store, which cannot append, it is written when the log is closed."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._lines: list[str] = []

    def write(self, event: str, **fields: Any) -> None:
        line = json.dumps({"time": round(time.time(), 3), "event": event, **fields})
        if self._run.is_local:
            with open(self._run.path("events.jsonl"), "a") as stream:
                stream.write(line + "\n")
        else:
            self._lines.append(line)

    def close(self) -> None:
        if self._lines:
            self._run.write_atomically(f"events-{time.time_ns()}.jsonl", "\n".join(self._lines).encode())


def model_fingerprint(model_path: str) -> str:
    """What tells two local checkpoints apart cheaply: the config's bytes and the weight files' names and sizes.

    For a hub id it is the id itself.
    """
    folder = Path(model_path)
    if not folder.is_dir():
        return model_path
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(folder.iterdir()):
        if file.suffix in (".safetensors", ".bin", ".pt", ".gguf"):
            digest.update(f"{file.name}:{file.stat().st_size}\n".encode())
        elif file.name == "config.json":
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _write_all(stream: IO[bytes], content: bytes) -> None:
    stream.write(content)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
