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


FORMER_IMPORTS = """
from rollout_ray.grading import Grader
from rollout_ray.regime_w import RewardConfig, score_question
from rollout_ray.records import Question, Trajectory
from rollout_ray.collect import Rollouts
from rollout_ray.config import RewardConfig, RunConfig
from rollout_ray.errors import ConfigError, RolloutError
import rollout_ray.collect, rollout_ray.grading, rollout_ray.records as records
import rollout_ray

assert rollout_ray.grading.Grader is Grader and records.Question is Question is rollout_ray.Question
assert rollout_ray.RolloutError is RolloutError and rollout_ray.RunConfig is RunConfig
from rollout_ray.api.collect import collect as function
assert rollout_ray.collect is function, "an import of the former module must not hide the function"
"""


def test_scripts_import_modules_by_their_former_names() -> None:
    assert "rollout_ray" in loaded_by(FORMER_IMPORTS)


def test_a_former_name_loads_nothing_until_it_is_used() -> None:
    code = "import sys, rollout_ray.grading; [hasattr(m, '__file__') for m in list(sys.modules.values())]"
    assert not loaded_by(f"{code}; assert 'rollout_ray.scoring.grader' not in sys.modules") & {"pyarrow", "numpy"}


def test_a_name_that_never_was_is_an_import_error() -> None:
    for module in ("rollout_ray", "rollout_ray.records", "rollout_ray.config"):
        with pytest.raises(ImportError, match="cannot import name 'NoSuchConfig'"):
            exec(f"from {module} import NoSuchConfig")
