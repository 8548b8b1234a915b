"""Open the file system of a path or URI, and reach an object store in bounded time.

The client of Google's store tries for 15 minutes. No signal ends a call of a client, and at its exit a process waits for
the call. So another process makes the first call. Later calls have the client's own patience.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from rollout_ray.core.errors import RolloutError
from rollout_ray.core.redaction import shorten
from rollout_ray.core.user_paths import expand_home

CONTACT_S = 90.0  # with the start of a process on a busy machine; an unreachable S3 store is known after about 7 s
GOOGLE_RETRY_S = 10  # of the first call
REFUSALS = ("ACCESS_DENIED", "PERMISSION_DENIED", "HTTP status 403")  # the store answers; the right call says what is wrong

_ASK = """
import sys
from pyarrow import fs
try:
    store, path = fs.FileSystem.from_uri(sys.argv[1])
    store.get_file_info(path)
except Exception as error:
    name = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
    print(name + " ".join(str(error).split()))
    sys.exit(1)
"""
_reached: set[tuple[str, str, str]] = set()


def open_place(place: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of a path or URI, and the path in it. Contacts no store.

    Raises:
        ArrowInvalid, ValueError: The URI has an unknown scheme or a wrong form.
        OSError: The client cannot start.
    """
    if "://" not in place:
        return fs.LocalFileSystem(), expand_home(place)
    with client_errors():
        filesystem, inner = fs.FileSystem.from_uri(place)
    return filesystem, inner


def check_contact(uri: str, seconds: float = CONTACT_S) -> None:
    """Ask the store of a URI for one entry, once per store and process. Ctrl-C ends the wait at once.

    Args:
        uri: Path or URI. A local path passes.
        seconds: Limit of the wait.

    Raises:
        OSError: The store cannot be reached, or does not answer in time.
    """
    parts = urlsplit(uri)
    store = (parts.scheme, parts.netloc, parts.query)
    if parts.scheme in ("", "file") or "://" not in uri or store in _reached:
        return
    command = [sys.executable, "-P", "-c", _ASK, _impatient(uri)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"no answer in {seconds:.0f} s") from None
    if done.returncode and not any(word in done.stdout for word in REFUSALS):
        raise OSError(done.stdout.strip() or shorten(done.stderr.strip(), 300))
    _reached.add(store)


def _impatient(uri: str) -> str:
    """Return the URI with a limit on the retries of Google's client, so that it gives the reason within the wait."""
    if not uri.startswith(("gs://", "gcs://")) or "retry_limit_seconds=" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}retry_limit_seconds={GOOGLE_RETRY_S}"


@contextmanager
def client_errors() -> Iterator[None]:
    """Turn the errors of clients written in Python, such as that of hf://, into an OSError."""
    try:
        yield
    except (RolloutError, OSError, ValueError, pa.ArrowException):
        raise
    except Exception as error:
        if not type(error).__module__.startswith(("httpx", "huggingface_hub", "aiohttp", "fsspec", "requests")):
            raise
        raise OSError(f"{type(error).__name__}: {error}") from error
