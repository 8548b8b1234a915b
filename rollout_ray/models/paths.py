"""Where a run's model and cluster are: what short names and unset fields stand for."""

from __future__ import annotations

import os
from pathlib import Path

from rollout_ray.config.schema import DEMO_MODEL, RunConfig
from rollout_ray.core.errors import ConfigError

DEMO_FOLDER = str(Path(__file__).resolve().parent.parent / "demo_model")


def model_folder(model_path: str) -> str:
    """The folder or hub id to load for `model_path`."""
    return DEMO_FOLDER if model_path == DEMO_MODEL else model_path


def cluster_address(config: RunConfig) -> str | None:
    """The Ray cluster that a run uses; None for a local Ray of its own."""
    return config.resources.ray_address or os.environ.get("RAY_ADDRESS")


def check_model(config: RunConfig) -> None:
    """Raises ConfigError where the model is a path that does not exist here and the engines will run here. A hub id has one
    slash at most, and a URI is left to vLLM."""
    path = config.model.model_path
    is_path = path.startswith(("/", "./", "../", "~")) or (path.count("/") > 1 and "://" not in path)
    if config.engine.backend == "vllm" and is_path and not cluster_address(config) and not os.path.isdir(path):
        raise ConfigError(f"model_path {path} is no folder; give one that holds a model, or a hub id")
