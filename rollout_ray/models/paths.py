"""Resolve the short names and unset fields of the model and the cluster."""

from __future__ import annotations

import os
import re
from pathlib import Path

from rollout_ray.config.schema import DEMO_MODEL, RunConfig
from rollout_ray.core.errors import ConfigError
from rollout_ray.core.user_paths import expand_home

# Owner and name of a model on the hub, or a name alone, and perhaps the quantization of a GGUF file.
_HUB_ID = re.compile(r"(\w[\w.\-]*/)?\w[\w.\-]*(:\w+)?", re.ASCII)
DEMO_FOLDER = str(Path(__file__).resolve().parent.parent / "demo_model")


def model_folder(model_path: str) -> str:
    """Return the folder or hub id that `model_path` stands for."""
    return DEMO_FOLDER if model_path == DEMO_MODEL else expand_home(model_path)


def cluster_address(config: RunConfig) -> str | None:
    """Return the address of the Ray cluster that a run uses. None: a local Ray of its own."""
    address = config.resources.ray_address or os.environ.get("RAY_ADDRESS")
    return None if address in ("", "local") else address  # Ray's own word for a new local one


def check_model_path(path: str) -> None:
    """Raise ConfigError if this machine does not have the path of a model, and no hub has such a name.

    A relative path may look like the id of a hub (`checkpoints/step-1`). It is a path if its first folder is here. vLLM
    checks URIs, and takes single files of GGUF.
    """
    if os.path.isdir(path) or "://" in path or (os.path.isfile(path) and path.endswith(".gguf")):
        return
    parent = os.path.dirname(path)
    if not _HUB_ID.fullmatch(path) or os.path.exists(path) or (parent and os.path.isdir(parent)):
        raise ConfigError(f"model_path {path} is no folder; give one that holds a model, or a hub id")
