"""Compiled modules where the installation keeps none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rollout_ray.actors.vllm_backend.imports import compiled_modules


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = "rollout_installed"
    (tmp_path / "site" / name).mkdir(parents=True)
    (tmp_path / "site" / name / "__init__.py").write_text("print('imported')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    return name


def test_they_are_kept_in_the_cache_where_python_may_write_none(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    variables = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **compiled_modules(package)}
    subprocess.run([sys.executable, "-c", f"import {package}"], cwd=tmp_path / "site", env=variables, check=True)
    assert list((tmp_path / "cache").rglob("__init__*.pyc")) and not list((tmp_path / "site").rglob("*.pyc"))


def test_they_stay_where_python_keeps_them_itself(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert compiled_modules(package) == {}
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, "-c", f"import {package}"], cwd=tmp_path / "site", env=clean, check=True)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert list((tmp_path / "site").rglob("*.pyc")) and compiled_modules(package) == {}
    assert compiled_modules("rollout_not_installed") == {}
