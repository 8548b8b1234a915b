"""What may be shown or written down: text without control characters, and no secret.

Owns what counts as a control character and as a secret. It changes no data: rows are written as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

# C0 and C1 without tab and newline, what reverses the direction of writing, line separators, lone surrogates.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SECRET_NAME = re.compile(
    r"(?:^|[_.\-])(?:token|secret|password|passwd|api_?key|(?:access|account|secret|private)_?key|credentials?|signature|sas)$",
    re.IGNORECASE,
)


def escape_controls(text: str) -> str:
    """The text for a terminal: control characters, with which a name or an answer could steer it, stand escaped."""
    return _CONTROL.sub(lambda found: ascii(found.group())[1:-1], text)


def encodable(text: str) -> str:
    """The text with lone surrogates replaced, which no file of ours could hold."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def has_credentials(uri: str) -> bool:
    """Whether a URI holds a password, or a parameter that is one."""
    if "://" not in uri:
        return False
    try:
        parts = urlsplit(uri)
    except ValueError:
        return False  # no URI: whoever opens it says so
    parameters = parse_qsl(parts.query, keep_blank_values=True)
    return bool(parts.password) or any(_SECRET_NAME.search(name) and value for name, value in parameters)


def secret_names(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of the entries, at any depth, that hold a secret by their name, or a URI with credentials."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from secret_names(value, f"{prefix}{name}.")
        elif isinstance(value, str) and value and (_SECRET_NAME.search(str(name)) or has_credentials(value)):
            yield f"{prefix}{name}"


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment variables that hold no secret."""
    secrets = set(secret_names(environment))
    return {name: value for name, value in environment.items() if name not in secrets}


def shorten(text: str, most: int) -> str:
    """The text in at most `most` characters, its end cut off where it is longer."""
    return text if len(text) <= most else f"{text[: most - 3]}..."
