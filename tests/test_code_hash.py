"""The hash by which a named pool knows its engines' code: it follows every module, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rollout_ray.api.code_hash import package_hash, source_hash
from tests.conftest import ROOT, clean_environment


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A package as a checkout has it: one of its folders is a link to a folder beside it."""
    package = tmp_path / "checkout" / "package"
    (package / "driver").mkdir(parents=True)
    (package.parent / "actors" / "engine").mkdir(parents=True)
    (package / "actors").symlink_to("../actors")
    (package / "__init__.py").write_text("")
    (package / "driver" / "session.py").write_text("a = 1\n")
    (package / "driver" / "weights.py").write_text("b = 2\n")
    (package / "actors" / "engine" / "actor.py").write_text("c = 3\n")
    return package


@pytest.mark.parametrize(
    "change",
    [
        lambda package: (package / "__init__.py").write_text("d = 4\n"),
        lambda package: (package / "driver" / "session.py").write_text("a = 2\n"),
        lambda package: (package / "actors" / "engine" / "actor.py").write_text("c = 4\n"),
        lambda package: (package / "actors" / "engine" / "new.py").write_text(""),
        lambda package: (package / "driver" / "session.py").rename(package / "driver" / "session_loop.py"),
        lambda package: (package / "driver" / "session.py").rename(package / "session.py"),
        lambda package: (package / "driver" / "weights.py").unlink(),
        lambda package: (
            (package / "driver" / "session.py").write_text("a = 1\nb"),
            (package / "driver" / "weights.py").write_text(" = 2\n"),
        ),
    ],
)
def test_it_changes_with_every_module(checkout: Path, change: Callable[[Path], object]) -> None:
    before = source_hash(checkout)
    change(checkout)
    assert source_hash(checkout) != before


def test_it_does_not_change_with_what_is_no_module(checkout: Path) -> None:
    before = source_hash(checkout)
    (checkout / "__pycache__").mkdir()
    (checkout / "__pycache__" / "session.cpython-311.pyc").write_bytes(b"compiled")
    (checkout / "__pycache__" / "left.py").write_text("x")
    (checkout / "driver" / ".ipynb_checkpoints").mkdir()
    (checkout / "driver" / ".ipynb_checkpoints" / "session.py").write_text("x")
    (checkout / "driver" / "page.html").write_text("x")
    assert source_hash(checkout) == before


def test_an_installed_copy_has_the_hash_of_its_checkout(checkout: Path, tmp_path: Path) -> None:
    installed = shutil.copytree(checkout, tmp_path / "site" / "package", symlinks=False)
    assert (installed / "actors").is_dir() and not (installed / "actors").is_symlink()
    assert source_hash(installed) == source_hash(checkout)


def test_the_hash_of_rollout_ray_covers_every_module_and_is_the_same_in_an_installed_copy(tmp_path: Path) -> None:
    """Also where a link such as actors became a folder, as in a wheel."""
    site = tmp_path / "site"
    ignored = shutil.ignore_patterns("__pycache__", "demo_model")
    shutil.copytree(ROOT / "rollout_ray", site / "rollout_ray", symlinks=False, ignore=ignored)
    command = [sys.executable, "-c", "from rollout_ray.api.code_hash import package_hash; print(package_hash())"]

    def found() -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=clean_environment() | {"PYTHONPATH": str(site)}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert found() == package_hash()
    for changed in ("actors/engine/actor.py", "driver/session.py", "core/records.py", "jobs/submit.py"):
        before = source_hash(site / "rollout_ray")
        with (site / "rollout_ray" / changed).open("a") as file:
            file.write("# changed\n")
        assert source_hash(site / "rollout_ray") != before, changed
