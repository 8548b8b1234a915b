"""What we use of Ray and vLLM exists in the lowest and the highest version that pyproject.toml allows.

The versions' wheels are downloaded once and read, not imported. They are kept in ~/.cache/rollout_ray_tests.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.registry import RegistryError, allowed_versions, unpacked_wheel
from tests.source_names import Sources, uses

PRIVATE = re.compile(r"^\s*(?:from|import) ray(?:\._|\.autoscaler\._)", re.M)
VARIABLE = re.compile(r"VLLM_[A-Z0-9_]+")


def our_files() -> Iterator[Path]:
    """Yield our source files, but for the benchmark, which names its rivals' own options."""
    for folder in ("rollout_ray", "actors", "jobs", "cluster"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            if "benchmark" not in file.parts and not any(parent.is_symlink() for parent in file.parents):
                yield file


@cache
def sources(name: str, end: int) -> Sources:
    """The lowest (0) or highest (-1) allowed version. Skips the test if the registry cannot be reached."""
    try:
        return Sources(unpacked_wheel(name, allowed_versions(name)[end]), name)
    except RegistryError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("end", [0, -1], ids=["lowest", "highest"])
@pytest.mark.parametrize("name", ["ray", "vllm"])
def test_every_name_and_argument_that_we_use_is_there(name: str, end: int, programs: None) -> None:
    used, missing = uses(sources(name, end), our_files())
    assert len(used) > 50, "the sources of ours must be read"
    assert not missing


def test_a_ray_before_the_lowest_lacks_what_we_use(programs: None) -> None:
    """Ray 2.51 knows no token."""
    try:
        before = Sources(unpacked_wheel("ray", "2.51.2"), "ray")
    except RegistryError as error:
        pytest.skip(str(error))
    _, missing = uses(before, our_files())
    assert "ray._raylet.AuthenticationTokenLoader in ray_internals.py" in missing


def test_private_names_of_ray_are_in_one_module() -> None:
    assert [file.name for file in our_files() if PRIVATE.search(file.read_text())] == ["ray_internals.py"]


@pytest.mark.parametrize("end", [0, -1], ids=["lowest", "highest"])
def test_every_engine_argument_and_variable_is_there(end: int, programs: None) -> None:
    vllm = sources("vllm", end)
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
