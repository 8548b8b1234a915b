"""The import rule (DESIGN.md's table of folders) and the lightness of the package."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import rollout_ray
from tests.conftest import ROOT

PURE: dict[str, set[str]] = {
    "records": set(),
    "errors": set(),
    "redaction": set(),
    "files": set(),
    "templates": set(),
    "budget": set(),
    "usage": {"config", "config_arms"},
    "completion": {"config"},
    "config_arms": set(),
    "config": {"budget", "config_arms", "redaction", "templates"},
    "checkpoints": {"errors"},
    "adapters": {"checkpoints", "errors", "records", "templates"},
    "plain_numbers": set(),
    "units": {"plain_numbers"},
    "normal_form": {"plain_numbers", "units"},
    "latex": set(),
    "answers": {"normal_form", "plain_numbers"},
    "demo_questions": set(),
    "auth": {"errors"},
    "models": {"config", "errors"},
    "model_size": {"checkpoints", "config", "errors", "models"},
    "hardware": {"arms", "config", "errors", "model_size"},
    "speed": {"hardware", "model_size"},
    "plan": {"config", "hardware", "records", "redaction", "speed"},
    "grading": {"answers", "errors", "latex", "normal_form", "records", "redaction", "units"},
    "grader_child": set(),
    "regime_w": {"config", "grading", "normal_form"},
    "arms": {"config", "config_arms", "records"},
    "carried": {"errors", "redaction"},
    "rows": {"errors"},
    "sources": {"carried", "errors", "files", "redaction", "rows"},
    "questions": {"config", "errors", "records", "sources", "redaction", "templates"},
    "scheduler": {"records"},
    "storage": {"errors", "files", "redaction"},
    "parts": {"errors", "records", "storage"},
    "lease": {"errors", "storage"},
    "ledger": {"errors", "lease", "parts", "records", "storage", "redaction"},
    "merge": {"config", "errors", "ledger", "questions", "records", "storage"},
    "bounds": set(),
    "engine_stats": set(),
    "summary": {"bounds", "redaction"},
    "view": {"bounds", "engine_stats", "summary"},
    "preferences": set(),
    "trainer_rows": {"arms", "errors", "preferences", "records"},
    "export": {"errors", "files", "merge", "merged", "preferences", "questions", "records", "trainer_rows"},
    "estimates": set(),
    "tallies": {"estimates", "normal_form"},
    "timeline": set(),
    "report_chunks": {"config", "merged", "records", "redaction", "regime_w"},
    "report": {
        "config",
        "description",
        "errors",
        "ledger",
        "merged",
        "redaction",
        "report_chunks",
        "storage",
        "tallies",
        "timeline",
    },
    "roster": set(),
    "description": {"config", "errors", "questions", "records", "roster"},
    "merged": {"config", "description", "errors", "files", "ledger", "questions", "records", "storage", "templates"},
    "scoring": {"config", "errors", "grading", "records", "regime_w"},
    "findings": set(),
    "verify": {"errors", "findings", "grading", "merged", "records", "roster", "scoring"},
    "rescore": {
        "config",
        "config_sources",
        "errors",
        "grading",
        "ledger",
        "merge",
        "merged",
        "records",
        "summary",
        "scoring",
        "storage",
    },
    "prepare": {"demo_questions", "errors", "files", "rows"},
    "progress": {"redaction", "summary", "view"},
    "live": {"progress", "redaction", "view"},
    "early": {"summary"},
    "notebook": {"live", "progress", "redaction", "summary"},
    "plots": {"merged", "tallies"},
    "config_sources": {"config", "errors", "redaction", "usage"},
}
ASK_TRANSFORMERS = {"model_size"}  # when they are called: for the defaults of a config's class
DRIVERS = {
    "ahead",
    "autoscaling",
    "collect",
    "commands",
    "connection",
    "driver",
    "elastic",
    "fleet",
    "metrics",
    "planning",
    "pool",
    "run",
    "scorers",
    "slots",
    "tenancy",
    "weights",
    "__init__",
}
# Steps that work on weights: they import torch, transformers and peft when their command runs, but neither Ray nor vLLM.
ON_WEIGHTS: dict[str, set[str]] = {
    "shards": set(),
    "stored_parts": set(),
    "lora_model": {"adapters", "checkpoints", "errors", "stored_parts"},
    "merge_lora": {"errors", "lora_model", "shards"},
}


def imported(path: Path) -> set[str]:
    """Full names of every module that a file imports, deferred imports included, type-checking ones not."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    names = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{a.name}" if node.module == "rollout_ray" else node.module for a in node.names}
    return names


def test_every_module_of_the_package_has_a_rule() -> None:
    found = {p.stem for p in (ROOT / "rollout_ray").glob("*.py")}
    assert found == set(PURE) | set(ON_WEIGHTS) | DRIVERS


@pytest.mark.parametrize("module", PURE)
def test_a_pure_step_imports_only_what_it_may(module: str) -> None:
    names = imported(ROOT / "rollout_ray" / f"{module}.py")
    ours = {name.split(".")[1] for name in names if name.startswith("rollout_ray.")}
    assert ours <= PURE[module]
    refused = {"ray", "vllm", "torch", "actors", "jobs"} | (set() if module in ASK_TRANSFORMERS else {"transformers"})
    assert not {name.split(".")[0] for name in names} & refused


@pytest.mark.parametrize("module", ON_WEIGHTS)
def test_a_step_on_weights_imports_only_what_it_may(module: str) -> None:
    names = imported(ROOT / "rollout_ray" / f"{module}.py")
    assert {name.split(".")[1] for name in names if name.startswith("rollout_ray.")} <= ON_WEIGHTS[module]
    assert not {name.split(".")[0] for name in names} & {"ray", "vllm", "actors", "jobs"}


@pytest.mark.parametrize("path", sorted((ROOT / "actors").glob("*.py")), ids=lambda p: p.stem)
def test_an_actor_does_not_import_the_driver(path: Path) -> None:
    names = imported(path)
    assert not names & {f"rollout_ray.{name}" for name in DRIVERS}
    assert not {name for name in names if name.split(".")[0] == "jobs"}


@pytest.mark.parametrize("path", sorted((ROOT / "cluster").glob("*.py")), ids=lambda p: p.stem)
def test_a_cluster_module_imports_nothing_of_ours_but_the_errors(path: Path) -> None:
    """It also runs in `ray up` and in the autoscaler, where nothing of a run belongs."""
    names = imported(path)
    assert {name for name in names if name.split(".")[0] in ("rollout_ray", "actors", "jobs")} <= {
        f"rollout_ray.errors{end}" for end in ("", ".CloudError", ".ConfigError")
    }


def test_only_the_driver_talks_to_ray_in_the_package() -> None:
    users = {p.stem for p in (ROOT / "rollout_ray").glob("*.py") if any(n.split(".")[0] == "ray" for n in imported(p))}
    assert users == {
        "ahead",  # only counts this machine's cores as Ray does
        "autoscaling",
        "connection",
        "driver",
        "elastic",
        "fleet",
        "metrics",
        "pool",
        "scorers",
        "slots",
        "tenancy",
        "weights",
    }


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


def test_importing_the_module_of_its_name_does_not_hide_collect() -> None:
    assert not {"pyarrow"} & loaded_by("import rollout_ray")
    loaded_by("import rollout_ray.collect; from rollout_ray import collect; assert callable(collect)")
    loaded_by("from rollout_ray import collect; import rollout_ray.collect; assert callable(rollout_ray.collect)")


def test_public_names_are_exactly_all() -> None:
    assert all(hasattr(rollout_ray, name) for name in rollout_ray.__all__)
    public = {n for n, v in vars(rollout_ray).items() if not n.startswith("_") and not isinstance(v, type(sys))}
    assert public | {"__version__"} == set(rollout_ray.__all__)
