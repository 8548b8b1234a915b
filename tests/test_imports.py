"""The order of the packages, and the lightness of an import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import rollout_ray
from tests.conftest import ROOT


def test_a_folder_imports_only_folders_below_it() -> None:
    """The contracts in pyproject.toml, over the sources of this checkout."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def loaded_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after running `code`."""
    script = f"{code}\nimport sys, json; print(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import rollout_ray",
        "from rollout_ray import RunConfig, collect; RunConfig()",
        "from rollout_ray.run import main; main(['--help'])",
    ],
)
def test_importing_the_package_stays_light(code: str) -> None:
    assert not loaded_by(code) & {"ray", "torch", "vllm", "transformers", "pandas", "sympy"}


def test_help_needs_no_data_library() -> None:
    loaded = loaded_by("from rollout_ray.run import main; main(['--help'])")
    assert not loaded & {"pyarrow", "numpy", "rich", "yaml"}


def test_importing_the_package_needs_no_data_library() -> None:
    assert not {"pyarrow"} & loaded_by("import rollout_ray")


def test_public_names_are_exactly_all() -> None:
    assert all(hasattr(rollout_ray, name) for name in rollout_ray.__all__)
    public = {n for n, v in vars(rollout_ray).items() if not n.startswith("_") and not isinstance(v, type(sys))}
    assert public | {"__version__"} == set(rollout_ray.__all__)
