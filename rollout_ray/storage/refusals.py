"""Explain an error of a disk or an object store in one sentence of cause and one of remedy."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass

from rollout_ray.core.errors import LedgerError
from rollout_ray.core.redaction import shorten

RESUME_HINT = "run the same command again, which goes on from there"


@dataclass(frozen=True)
class _Refusal:
    """A sentence for errors with one of these error numbers, or with one of these words of a store's client."""

    sentence: str
    numbers: tuple[int, ...] = ()
    words: tuple[str, ...] = ()


_REFUSALS = (
    _Refusal(
        "no space is left for {uri} ({cause}); nothing half-written was kept. Make room and {resume}",
        numbers=(errno.ENOSPC, errno.EDQUOT),
    ),
    _Refusal(
        "{uri} cannot be written ({cause}). Make it writable and {resume}, or give another --output_dir",
        numbers=(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST),
    ),
    _Refusal(
        "the bucket of {uri} does not exist ({cause}). Create it, or correct --output_dir",
        words=("NO_SUCH_BUCKET", "Bucket '"),
    ),
    _Refusal(
        "the store refuses {uri} ({cause}). Check the credentials in the environment (AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or the machine's role) and their rights to get, put, list and delete",
        words=(
            "ACCESS_DENIED",
            "INVALID_ACCESS_KEY",
            "SIGNATURE_DOES_NOT_MATCH",
            "EXPIRED_TOKEN",
            "ExpiredToken",
            "HTTP status 403",
        ),
    ),
    _Refusal(
        "the store of {uri} cannot be reached ({cause}). Check the network and the endpoint (AWS_ENDPOINT_URL, or "
        "endpoint_override in the URI) and {resume}",
        words=(
            "NETWORK_CONNECTION",
            "curlCode",
            "CURL error",
            "UNAVAILABLE",
            "no answer in",
            "ConnectError",
            "ConnectTimeout",
        ),
    ),
    _Refusal(
        "the store of {uri} answers with errors, repeatedly ({cause}). When it serves again, {resume}",
        words=("SLOW_DOWN", "SERVICE_UNAVAILABLE", "INTERNAL_FAILURE", "HTTP status 5"),
    ),
)
_OTHER = "{uri} cannot be read or written: {cause}. Correct the cause, then {resume}"


def explain_refusal(uri: str, error: OSError) -> LedgerError:
    """Return the LedgerError that explains `error` of the disk or store at `uri`."""
    cause = shorten(one_line(error), 400)
    matching = (r for r in _REFUSALS if error.errno in r.numbers or any(word in cause for word in r.words))
    found = next(matching, None)
    sentence = found.sentence if found else _OTHER
    return LedgerError(sentence.format(uri=uri, cause=cause, resume=RESUME_HINT))


def one_line(error: BaseException) -> str:
    """Return the error's text on one line, without request numbers and repeated details."""
    return re.sub(r" ?\(Request ID: [^)]*\)|\.? Detail: \[errno .*", "", " ".join(str(error).split())).rstrip(".")
