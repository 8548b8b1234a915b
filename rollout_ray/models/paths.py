"""Resolve the short names and unset fields of the model and the cluster."""

from __future__ import annotations

import os
from pathlib import Path

from rollout_ray.config.schema import DEMO_MODEL, RunConfig
from rollout_ray.core.errors import ConfigError

DEMO_FOLDER = str(Path(__file__).resolve().parent.parent / "demo_model")


def model_folder(model_path: str) -> str:
    """Return the folder or hub id that `model_path` stands for."""
    return DEMO_FOLDER if model_path == DEMO_MODEL else model_path


def cluster_address(config: RunConfig) -> str | None:
    """Return the address of the Ray cluster that a run uses. None: a local Ray of its own."""
    return config.resources.ray_address or os.environ.get("RAY_ADDRESS")


def check_model(config: RunConfig) -> None:
    """Raise ConfigError if the model is a path that this machine does not have, and the engines run on this machine.

    A hub id has at most one slash. vLLM checks URIs.
    """
    path = config.model.model_path
    is_path = path.startswith(("/", "./", "../", "~")) or (path.count("/") > 1 and "://" not in path)
    if config.engine.backend == "vllm" and is_path and not cluster_address(config) and not os.path.isdir(path):
        raise ConfigError(f"model_path {path} is no folder; give one that holds a model, or a hub id")
