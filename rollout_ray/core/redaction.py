"""Escape control characters and find secrets before text is displayed or logged.

Defines which characters are control characters and which names hold secrets. Rows of data are never changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

# C0 and C1 without tab and newline, direction marks, line separators, lone surrogates.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SECRET_NAME = re.compile(
    r"(?:^|[_.\-])(?:token|secret|password|passwd|api_?key|(?:access|account|secret|private)_?key|credentials?|signature|sas)$",
    re.IGNORECASE,
)


def escape_controls(text: str) -> str:
    """Escape control characters, so that a name or an answer cannot control the terminal."""
    return _CONTROL.sub(lambda found: ascii(found.group())[1:-1], text)


def encodable(text: str) -> str:
    """Replace lone surrogates, which UTF-8 files cannot hold."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def has_credentials(uri: str) -> bool:
    """Return whether a URI holds a password or a secret parameter."""
    if "://" not in uri:
        return False
    try:
        parts = urlsplit(uri)
    except ValueError:
        return False  # not a URI: opening it reports the error
    parameters = parse_qsl(parts.query, keep_blank_values=True)
    return bool(parts.password) or any(_SECRET_NAME.search(name) and value for name, value in parameters)


def secret_names(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of entries, at any depth, that hold a secret or a URI with credentials."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from secret_names(value, f"{prefix}{name}.")
        elif isinstance(value, str) and value and (_SECRET_NAME.search(str(name)) or has_credentials(value)):
            yield f"{prefix}{name}"


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables that hold no secret."""
    secrets = set(secret_names(environment))
    return {name: value for name, value in environment.items() if name not in secrets}


def shorten(text: str, limit: int) -> str:
    """Cut the text to at most `limit` characters, the ellipsis included."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
