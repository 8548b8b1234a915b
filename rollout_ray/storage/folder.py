"""A folder on a local disk or in an object store, whose files are there whole or not at all.

Owns paths and URIs, atomic writing, what of the environment a store's client needs, and the wording of what a disk or a
store refuses. It knows no file's content and retries nothing: an object store's client retries by itself.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from rollout_ray.core.errors import ConfigError, LedgerError
from rollout_ray.core.redaction import has_credentials
from rollout_ray.storage.files import write_whole

_T = TypeVar("_T")
_R = TypeVar("_R")

# Variables that the stores' clients read. They are secrets: they travel to scoring actors and are written nowhere.
CREDENTIALS = ("AWS_", "GOOGLE_", "AZURE_")
READERS, REMOTE_READERS = 4, 16  # files read at a time; an object store answers slowly, and many at once
UPLOAD_BYTES = 8 << 20
AGAIN = "run the same command again, which goes on from there"


@dataclass(frozen=True)
class Entry:
    """A file of the folder; `mtime_ns` is by the clock of the disk or store that holds it."""

    name: str
    size: int
    mtime_ns: int


def split_path(path: str) -> tuple[str, str]:
    """Folder and file name of a path or URI; a URI's options (what follows the `?`) stay with the folder."""
    if "://" not in path:
        return os.path.split(os.path.abspath(path))
    plain, mark, options = path.partition("?")
    folder, _, name = plain.rpartition("/")
    return folder + mark + options, name


def join_path(folder: str, name: str) -> str:
    """The inverse of `split_path`."""
    plain, mark, options = folder.partition("?") if "://" in folder else (folder, "", "")
    return f"{plain.rstrip('/')}/{name}{mark}{options}"


def _refuse_credentials(uri: str) -> None:
    """Raises ConfigError where a URI carries a password or key: it would end up in run.json, logs and messages."""
    if has_credentials(uri):
        scheme, _, place = uri.partition("?")[0].partition("://")
        raise ConfigError(
            f"the URI {scheme}://.../{place.rpartition('/')[2]} carries a credential; give credentials in "
            "the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS), never in a URI"
        )


class Folder:
    """A folder by path or URI (s3://, gs://, file://). It is opened when it is first used.

    Every method raises LedgerError, in one sentence of cause and one of remedy, where the disk or store refuses.
    """

    def __init__(self, uri: str) -> None:
        _refuse_credentials(uri)
        self.uri = uri if "://" in uri else os.path.abspath(uri)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"

    @cached_property
    def _place(self) -> tuple[fs.FileSystem, str]:
        if "://" not in self.uri:
            return fs.LocalFileSystem(), self.uri
        try:
            filesystem, root = fs.FileSystem.from_uri(self.uri)
        except (pa.ArrowException, ValueError) as error:
            raise ConfigError(f"output_dir {self.uri} is no folder that can be opened: {_one_line(error)}") from error
        except OSError as error:
            raise self._explained(error) from error
        return filesystem, root.rstrip("/")

    @property
    def is_local(self) -> bool:
        return isinstance(self._place[0], fs.LocalFileSystem)

    @property
    def readers(self) -> int:
        """How many files are worth reading at a time."""
        return READERS if self.is_local else REMOTE_READERS

    def path(self, name: str) -> str:
        """`name` inside the folder, in the form that a user would open."""
        return join_path(self.uri, name)

    def local(self, name: str) -> Path:
        """The file on the local disk; only where `is_local`."""
        return Path(self._place[1], name)

    def _inner(self, name: str) -> str:
        return f"{self._place[1]}/{name}" if name else self._place[1]

    # Reading

    def entries(self, folder: str = "") -> list[Entry]:
        """The files right in `folder`, sorted by name; none where there is no such folder."""
        with self.storage_errors():
            found = self._place[0].get_file_info(fs.FileSelector(self._inner(folder), allow_not_found=True))
        above = f"{folder}/" if folder else ""
        files = [Entry(f"{above}{e.base_name}", e.size, e.mtime_ns) for e in found if e.is_file]
        return sorted(files, key=lambda entry: entry.name)

    def exists(self, name: str) -> bool:
        with self.storage_errors():
            return bool(self._place[0].get_file_info(self._inner(name)).type != fs.FileType.NotFound)

    def read(self, name: str) -> pa.Buffer | None:
        """The file's bytes, with one request; None where there is no such file."""
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
        """Creates the folder and those above it."""
        with self.storage_errors():
            self._place[0].create_dir(self._inner(folder), recursive=True)

    def write_atomically(self, name: str, content: bytes | pa.Buffer | Callable[[IO[bytes]], None]) -> None:
        """Writes a file that is either whole or not there, whenever the writer or the machine dies.

        Locally: a temporary name, fsync, rename. For an object store the file is first made whole on the local disk
        (in TMPDIR): a store publishes whatever was sent when a stream is closed, after an exception too.
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
                    f"a file for {self.uri} cannot be made whole in {tempfile.gettempdir()} before its upload "
                    f"({_one_line(error)}). Make room there, or name another disk with TMPDIR, and {AGAIN}"
                ) from error
            self._before_publishing()
            # In a thread, which no Ctrl-C reaches; the main thread waits for it before it passes an interrupt on.
            with ThreadPoolExecutor(1) as sender:
                sender.submit(self._send, name, spool).result()

    def _send(self, name: str, spool: IO[bytes]) -> None:
        stream = self._place[0].open_output_stream(self._inner(name), compression=None)
        try:
            while chunk := spool.read(UPLOAD_BYTES):
                stream.write(chunk)
        except OSError:
            with suppress(OSError):  # the same error again: an upload with a piece missing is not completed
                stream.close()
            raise
        stream.close()

    def _before_publishing(self) -> None:
        """Called when a file is whole and about to get its name; may raise."""

    def move(self, name: str, target: str) -> None:
        """Gives a file another name, which must be free."""
        with self.storage_errors():
            self._place[0].move(self._inner(name), self._inner(target))

    def remove(self, name: str) -> None:
        """Deletes a file; nothing happens where there is none."""
        with self.storage_errors():
            try:
                self._place[0].delete_file(self._inner(name))
            except FileNotFoundError:
                return

    # Errors

    @contextmanager
    def storage_errors(self) -> Iterator[None]:
        """Turns what the disk or store says into a LedgerError."""
        try:
            yield
        except OSError as error:
            raise self._explained(error) from error

    def _explained(self, error: OSError) -> LedgerError:
        said = _one_line(error)
        for codes, words, sentence in _REFUSALS:
            if error.errno in codes or any(word in said for word in words):
                return LedgerError(sentence.format(uri=self.uri, said=said, again=AGAIN))
        return LedgerError(f"{self.uri} cannot be read or written: {said}. When that is mended, {AGAIN}")


# Error numbers, words of a store's client, and what the user is told.
_REFUSALS: tuple[tuple[tuple[int, ...], tuple[str, ...], str], ...] = (
    (
        (errno.ENOSPC, errno.EDQUOT),
        (),
        "no space is left for {uri} ({said}); nothing half-written was kept. Make room and {again}",
    ),
    (
        (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST),
        (),
        "{uri} cannot be written ({said}). Make it writable and {again}, or give another --output_dir",
    ),
    (
        (),
        ("NO_SUCH_BUCKET", "Bucket '"),
        "the bucket of {uri} does not exist ({said}). Create it, or correct --output_dir",
    ),
    (
        (),
        (
            "ACCESS_DENIED",
            "INVALID_ACCESS_KEY",
            "SIGNATURE_DOES_NOT_MATCH",
            "EXPIRED_TOKEN",
            "ExpiredToken",
            "HTTP status 403",
        ),
        "the store refuses {uri} ({said}). Check the credentials in the environment (AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or the machine's role) and their rights to get, put, list and delete",
    ),
    (
        (),
        ("NETWORK_CONNECTION", "curlCode"),
        "the store of {uri} cannot be reached ({said}). Check the network and the endpoint (AWS_ENDPOINT_URL, or "
        "endpoint_override in the URI) and {again}",
    ),
    (
        (),
        ("SLOW_DOWN", "SERVICE_UNAVAILABLE", "INTERNAL_FAILURE", "HTTP status 5"),
        "the store of {uri} answers with errors, repeatedly ({said}). When it serves again, {again}",
    ),
)


def _one_line(error: BaseException) -> str:
    """The client's words without line breaks, request numbers and repetition."""
    return re.sub(r" ?\(Request ID: [^)]*\)|\.? Detail: \[errno .*", "", " ".join(str(error).split())).rstrip(".")


def in_parallel(function: Callable[[_T], _R], items: Iterable[_T], at_once: int) -> Iterator[_R]:
    """`map` over a few threads: the results in order, at most `at_once` of them begun and not yet taken."""
    with ThreadPoolExecutor(at_once) as pool:
        begun: deque[Future[_R]] = deque()
        try:
            for item in items:
                begun.append(pool.submit(function, item))
                if len(begun) == at_once:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()
