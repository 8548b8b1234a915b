"""The token of a Ray cluster, as far as it is told without Ray: whether there is one here, and whether one must be.

Ray decides whether to use it when it is imported (RAY_AUTH_MODE). This imports no Ray, and keeps no token.
"""

from __future__ import annotations

import os
from pathlib import Path

from rollout_ray.core.errors import RolloutError
from rollout_ray.ray_cluster.private_session import close_to_others

MODE = "RAY_AUTH_MODE"


def has_token() -> bool:
    """Whether there is a token where Ray would look for it."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token"))
    found = os.path.isfile(path)  # False also where the folder cannot be entered
    if found:
        close_to_others(path)
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or found


def check_token() -> None:
    """Raises RolloutError where Ray is told to use a token and there is none: it would end this process."""
    if os.environ.get(MODE) == "token" and not has_token():
        raise RolloutError(f"{MODE} is token and there is none here; put the head's ~/.ray/auth_token here, or unset it")
