"""Ask the package registry, through pip, for versions and wheels. A wheel is downloaded once and kept unpacked."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from functools import cache
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from tests.conftest import ROOT

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rollout_ray_tests"


class RegistryError(Exception):
    """pip could not do what it was asked for."""


def pip(*words: str) -> str:
    """Run pip and return its output. Raise RegistryError if it fails."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries", "1", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RegistryError(f"pip {words[0]} {words[-1]} failed: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


@cache
def allowed_versions(name: str, registered: str | None = None) -> list[str]:
    """Return the versions of a package that pyproject.toml allows, the lowest first.

    Args:
        name: The package in pyproject.toml.
        registered: The package whose versions are listed, if it has another name.

    Raises:
        RegistryError: The registry cannot be reached.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = map(Requirement, (*project["dependencies"], *project["optional-dependencies"]["gpu"]))
    specifier = next(one.specifier for one in requirements if one.name == name)
    listed = re.search(r"^Available versions: (.*)$", pip("index", "versions", registered or name), re.M)
    assert listed
    return sorted((one for one in listed[1].split(", ") if specifier.contains(one)), key=Version)


def unpacked_wheel(name: str, version: str) -> Path:
    """Return the folder with the Python files of a version's wheel. Raise RegistryError if it cannot be downloaded."""
    folder = CACHE / f"{name}-{version}"
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as download:
            with zipfile.ZipFile(download_wheel(name, version, Path(download))) as wheel:
                files = [file for file in wheel.namelist() if file.endswith((".py", "_raylet.so"))]
                unpacked = Path(download) / "unpacked"
                wheel.extractall(unpacked, [file for file in files if file.startswith(f"{name}/")])
            unpacked.rename(folder)
    return folder


def download_wheel(name: str, version: str, folder: Path) -> Path:
    """Download the wheel for this Python into `folder` and return its path."""
    pip("download", "-q", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), f"{name}=={version}")
    return next(folder.glob(f"{name.replace('-', '_')}-{version}-*.whl"))
