"""Tell whether this machine has the token of a Ray cluster, and whether it must have one.

Ray reads RAY_AUTH_MODE when it is imported. This module imports no Ray and keeps no token.
"""

from __future__ import annotations

import os
from pathlib import Path

from rollout_ray.core.errors import RolloutError
from rollout_ray.ray_cluster.private_session import close_to_others

MODE = "RAY_AUTH_MODE"


def has_token() -> bool:
    """Return whether there is a token where Ray looks for it."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token"))
    found = os.path.isfile(path)  # False also where the folder cannot be entered
    if found:
        close_to_others(path)
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or found


def check_token() -> None:
    """Raise RolloutError if Ray must use a token and there is none: Ray would end this process."""
    if os.environ.get(MODE) == "token" and not has_token():
        raise RolloutError(f"{MODE} is token and there is none here; put the head's ~/.ray/auth_token here, or unset it")
