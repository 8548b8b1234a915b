"""Split, join and check paths and URIs of files."""

from __future__ import annotations

import os

from rollout_ray.core.errors import ConfigError
from rollout_ray.core.redaction import has_credentials


def split_path(path: str) -> tuple[str, str]:
    """Return folder and file name of a path or URI. The options of a URI (after `?`) stay with the folder."""
    if "://" not in path:
        return os.path.split(os.path.abspath(path))
    plain, mark, options = path.partition("?")
    folder, _, name = plain.rpartition("/")
    return folder + mark + options, name


def join_path(folder: str, name: str) -> str:
    """Return the path of `name` in `folder`: the inverse of `split_path`."""
    plain, mark, options = folder.partition("?") if "://" in folder else (folder, "", "")
    return f"{plain.rstrip('/')}/{name}{mark}{options}"


def refuse_credentials(uri: str) -> None:
    """Raise ConfigError if a URI holds a password or key, which would reach run.json, logs and messages."""
    if has_credentials(uri):
        scheme, _, place = uri.partition("?")[0].partition("://")
        raise ConfigError(
            f"the URI {scheme}://.../{place.rpartition('/')[2]} carries a credential; give credentials in "
            "the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS), never in a URI"
        )
