"""What we use of Ray and vLLM exists in the lowest and the highest version that pyproject.toml allows.

The versions' wheels are downloaded once and read, not imported. They are kept in ~/.cache/rollout_ray_tests.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.conftest import ROOT
from tests.source_names import Sources, uses

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rollout_ray_tests"
PRIVATE = re.compile(r"^\s*(?:from|import) ray(?:\._|\.autoscaler\._)", re.M)
VARIABLE = re.compile(r"VLLM_[A-Z0-9_]+")


def our_files() -> Iterator[Path]:
    """Yield our source files, but for the benchmark, which names its rivals' own options."""
    for folder in ("rollout_ray", "actors", "jobs", "cluster"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            if "benchmark" not in file.parts and not any(parent.is_symlink() for parent in file.parents):
                yield file


def requirement(name: str) -> Requirement:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = map(Requirement, (*project["dependencies"], *project["optional-dependencies"]["gpu"]))
    return next(one for one in listed if one.name == name)


def pip(*words: str) -> str:
    """Run pip and return its output. Skip the test if it fails: the registry cannot be reached."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries", "1", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the registry cannot be reached: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


@cache
def allowed(name: str) -> list[str]:
    """The versions in the registry that pyproject.toml allows, the lowest first."""
    listed = re.search(r"^Available versions: (.*)$", pip("index", "versions", name), re.M)
    assert listed
    specifier = requirement(name).specifier
    return sorted((one for one in listed[1].split(", ") if specifier.contains(one)), key=Version)


@cache
def sources(name: str, version: str) -> Sources:
    """The Python files of a version's wheel."""
    folder = CACHE / f"{name}-{version}"
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as download:
            pip("download", "-q", "--no-deps", "--only-binary", ":all:", "--dest", download, f"{name}=={version}")
            unpacked = Path(download) / "unpacked"
            with zipfile.ZipFile(next(Path(download).glob("*.whl"))) as wheel:
                files = [file for file in wheel.namelist() if file.endswith((".py", "_raylet.so"))]
                wheel.extractall(unpacked, [file for file in files if file.startswith(f"{name}/")])
            unpacked.rename(folder)
    return Sources(folder, name)


@pytest.mark.parametrize("end", [0, -1], ids=["lowest", "highest"])
@pytest.mark.parametrize("name", ["ray", "vllm"])
def test_every_name_and_argument_that_we_use_is_there(name: str, end: int) -> None:
    used, missing = uses(sources(name, allowed(name)[end]), our_files())
    assert len(used) > 50, "the sources of ours must be read"
    assert not missing


def test_a_ray_before_the_lowest_lacks_what_we_use() -> None:
    """Ray 2.51 knows no token."""
    _, missing = uses(sources("ray", "2.51.2"), our_files())
    assert "ray._raylet.AuthenticationTokenLoader in ray_internals.py" in missing


def test_private_names_of_ray_are_in_one_module() -> None:
    assert [file.name for file in our_files() if PRIVATE.search(file.read_text())] == ["ray_internals.py"]


@pytest.mark.parametrize("end", [0, -1], ids=["lowest", "highest"])
def test_every_engine_argument_and_variable_is_there(end: int) -> None:
    vllm = sources("vllm", allowed("vllm")[end])
    engine_args = vllm.imported("vllm.engine.arg_utils", "EngineArgs")
    assert engine_args
    arguments = engine_arguments(ROOT / "actors" / "vllm_backend" / "arguments.py")
    assert "tensor_parallel_size" in arguments
    assert [name for name in sorted(arguments) if vllm.member(engine_args, name) is None] == []
    variables = {name for file in our_files() for name in strings(ast.parse(file.read_text())) if VARIABLE.fullmatch(name)}
    assert "VLLM_CACHE_ROOT" in variables
    assert variables - strings(vllm.tree("vllm.envs")) == set()


def strings(tree: ast.AST) -> set[str]:
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def engine_arguments(file: Path) -> set[str]:
    """The names in every dictionary of the functions that return engine arguments."""
    names: set[str] = set()
    for function in ast.parse(file.read_text()).body:
        if isinstance(function, ast.FunctionDef) and function.returns and ast.unparse(function.returns) == "dict[str, Any]":
            for node in ast.walk(function):
                keys = node.keys if isinstance(node, ast.Dict) else ()
                names |= {key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)}
    return names
