"""Read and write whole files in a folder on a local disk or in an object store.

A file appears complete or not at all. Nothing is retried here: the client of an object store retries by itself.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from rollout_ray.core.errors import ConfigError, LedgerError
from rollout_ray.core.user_paths import expand_home
from rollout_ray.storage.files import write_whole
from rollout_ray.storage.paths import join_path, refuse_credentials, split_path
from rollout_ray.storage.refusals import RESUME_HINT, explain_refusal, one_line
from rollout_ray.storage.stores import check_contact, client_errors, open_place

# Prefixes of variables that object store clients read. They are secrets: sent to scoring actors, never written.
CREDENTIALS = ("AWS_", "GOOGLE_", "AZURE_")
READERS = 4  # files read at a time from a local disk
REMOTE_READERS = 16  # from an object store, which answers slowly but serves many requests at once
UPLOAD_BYTES = 8 << 20


@dataclass(frozen=True)
class Entry:
    """A file of the folder. `mtime_ns` comes from the clock of the disk or store."""

    name: str
    size: int
    mtime_ns: int


class Folder:
    """A folder by path or URI (s3://, gs://, file://), opened at first use.

    Every method raises LedgerError if the disk or store refuses. The error names cause and remedy.
    """

    def __init__(self, uri: str) -> None:
        refuse_credentials(uri)
        self.uri = uri if "://" in uri else os.path.abspath(expand_home(uri))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"

    @cached_property
    def _place(self) -> tuple[fs.FileSystem, str]:
        try:
            filesystem, root = open_place(self.uri)
        except (pa.ArrowException, ValueError) as error:
            raise ConfigError(
                f"output_dir {self.uri} cannot be opened: {one_line(error)}. Give a path or an s3:// or gs:// URI"
            ) from error
        except OSError as error:
            raise explain_refusal(self.uri, error) from error
        return filesystem, root if "://" not in self.uri else root.rstrip("/")

    @property
    def is_local(self) -> bool:
        return isinstance(self._place[0], fs.LocalFileSystem)

    @property
    def readers(self) -> int:
        """Return how many files to read at a time."""
        return READERS if self.is_local else REMOTE_READERS

    def path(self, name: str) -> str:
        """Return the path or URI of `name` in the folder."""
        return join_path(self.uri, name)

    def local(self, name: str) -> Path:
        """Return the path of `name` on the local disk. Requires `is_local`."""
        return Path(self._place[1], name)

    def _inner(self, name: str) -> str:
        return f"{self._place[1]}/{name}" if name else self._place[1]

    def check_contact(self) -> None:
        """Raise LedgerError if the store cannot be reached. A local folder passes."""
        if not self.is_local:
            with self.storage_errors():
                check_contact(self.uri)

    # Reading

    def entries(self, folder: str = "") -> list[Entry]:
        """Return the files directly in `folder`, sorted by name; none if the folder does not exist."""
        with self.storage_errors():
            found = self._place[0].get_file_info(fs.FileSelector(self._inner(folder), allow_not_found=True))
        prefix = f"{folder}/" if folder else ""
        files = [Entry(f"{prefix}{e.base_name}", e.size, e.mtime_ns) for e in found if e.is_file]
        return sorted(files, key=lambda entry: entry.name)

    def exists(self, name: str) -> bool:
        with self.storage_errors():
            return bool(self._place[0].get_file_info(self._inner(name)).type != fs.FileType.NotFound)

    def read(self, name: str) -> pa.Buffer | None:
        """Return the bytes of a file, read in one request, or None if it does not exist."""
        with self.storage_errors():
            try:
                with self._place[0].open_input_file(self._inner(name)) as stream:
                    return stream.read_buffer()
            except FileNotFoundError:
                return None

    def open_parquet(self, name: str) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self._inner(name), filesystem=self._place[0], page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise LedgerError(f"{self.path(name)} cannot be read ({error}); move it away and run again") from error

    # Writing

    def make(self, folder: str = "") -> None:
        """Create the folder and its parents."""
        with self.storage_errors():
            self._place[0].create_dir(self._inner(folder), recursive=True)

    def write_atomically(self, name: str, content: bytes | pa.Buffer | Callable[[IO[bytes]], None]) -> None:
        """Write a file that is complete or absent, even if the writer or the machine dies.

        A local file gets a temporary name, fsync and rename. For an object store, the file is completed in TMPDIR
        first: closing an upload stream publishes whatever was sent, even after an exception.
        """
        write: Callable[[Any], Any] = content if callable(content) else lambda stream: stream.write(content)
        with self.storage_errors():
            if self.is_local:
                write_whole(self.local(name), write, self._before_publishing)
            else:
                self._upload(name, write)

    def _upload(self, name: str, write: Callable[[Any], Any]) -> None:
        with tempfile.TemporaryFile(prefix="rollout-") as spool:
            try:
                write(spool)
                spool.seek(0)
            except OSError as error:
                raise LedgerError(
                    f"a file for {self.uri} cannot be completed in {tempfile.gettempdir()} before its upload "
                    f"({one_line(error)}). Make room there, or name another disk with TMPDIR, and {RESUME_HINT}"
                ) from error
            self._before_publishing()
            # Ctrl-C does not reach a thread. The main thread waits for it before it raises KeyboardInterrupt.
            with ThreadPoolExecutor(1) as sender:
                sender.submit(self._send, name, spool).result()

    def _send(self, name: str, spool: IO[bytes]) -> None:
        stream = self._place[0].open_output_stream(self._inner(name), compression=None)
        try:
            while chunk := spool.read(UPLOAD_BYTES):
                stream.write(chunk)
        except OSError:
            with suppress(OSError):  # repeats the error: the store does not complete an upload with a missing part
                stream.close()
            raise
        stream.close()

    def _before_publishing(self) -> None:
        """Run before a complete file gets its name. Subclasses may raise to prevent it."""

    def move(self, name: str, target: str) -> None:
        """Rename a file. No file may have the new name."""
        with self.storage_errors():
            self._place[0].move(self._inner(name), self._inner(target))

    def remove(self, name: str) -> None:
        """Delete a file, if it exists."""
        with self.storage_errors():
            try:
                self._place[0].delete_file(self._inner(name))
            except FileNotFoundError:
                return

    # Errors

    @contextmanager
    def storage_errors(self) -> Iterator[None]:
        """Turn an OSError of the disk or store into a LedgerError."""
        try:
            with client_errors():
                yield
        except OSError as error:
            raise explain_refusal(self.uri, error) from error


def write_file(path: str, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file, by path or URI, that is complete or absent.

    Raises:
        OSError: The disk refuses, or the path is a folder or a device.
        LedgerError: The store refuses.
    """
    if "://" not in path:
        write_whole(path, write)
        return
    folder, name = split_path(path)
    place = Folder(folder)
    place.check_contact()
    place.write_atomically(name, write)
