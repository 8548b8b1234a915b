"""Split, join and check paths and URIs of files."""

from __future__ import annotations

import os

from rollout_ray.core.errors import ConfigError
from rollout_ray.core.redaction import has_credentials
from rollout_ray.core.user_paths import expand_home


def split_path(path: str) -> tuple[str, str]:
    """Return folder and file name of a path or URI. The options of a URI (after `?`) stay with the folder."""
    if "://" not in path:
        return os.path.split(os.path.abspath(expand_home(path)))
    plain, mark, options = path.partition("?")
    folder, _, name = plain.rpartition("/")
    return folder + mark + options, name


def join_path(folder: str, name: str) -> str:
    """Return the path of `name` in `folder`: the inverse of `split_path`."""
    plain, mark, options = folder.partition("?") if "://" in folder else (folder, "", "")
    return f"{plain.rstrip('/')}/{name}{mark}{options}"


def real_path(path: str) -> str:
    """Return a local path without links, or a remote URI without options. Equal results name one place."""
    local = path.removeprefix("file://")
    return path.partition("?")[0] if "://" in local else os.path.realpath(expand_home(local))


def local_path(path: str, command: str) -> str:
    """Return the path with the home folder in place of `~`. Raise ConfigError if it is a URI."""
    if "://" in path:
        raise ConfigError(f"{path} is a URI, and {command} takes folders of this machine. Give a local path")
    return expand_home(path)


def refuse_credentials(uri: str) -> None:
    """Raise ConfigError if a URI holds a password or key, which would reach run.json, logs and messages."""
    if has_credentials(uri):
        scheme, _, place = uri.partition("?")[0].partition("://")
        raise ConfigError(
            f"the URI {scheme}://.../{place.rpartition('/')[2]} carries a credential; give credentials in "
            "the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS), never in a URI"
        )
