"""What a user installs: the wheel, its extras, its console script, the model inside, and the one name that it takes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rollout_ray.scoring.grader_process import Child
from tests.conftest import (
    AWAIT_JOB_AGENT,
    HANG_S,
    ROOT,
    Command,
    clean_environment,
    demo_rows,
    free_port,
    python_named_modules,
)

OUR_FOLDERS = ("actors", "cluster", "jobs", "tests")


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory, programs: None) -> Path:
    """The wheel of a copy of the checkout (building leaves files in it)."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(checkout, source, symlinks=True, ignore=shutil.ignore_patterns(".venv", "runs", "path"))
    command = [sys.executable, "-m", "pip", "-q", "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), "."]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def install(folder: Path, *words: str) -> Path:
    """Install with pip into a new environment that borrows every other package from this one; return its `bin`."""
    venv.create(folder, symlinks=True, with_pip=False)
    python = folder / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "-q", "install", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, *words], check=True, capture_output=True)
    return python.parent


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with the wheel in it."""
    return install(tmp_path_factory.mktemp("environment"), str(wheel))


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A user's folder with questions, packages that have our folders' names, and modules that have Python's."""
    folder = python_named_modules(tmp_path)
    for name in OUR_FOLDERS:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(f"raise ImportError('{name} of the user was imported')")
    return with_questions(folder)


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    """A user's folder with questions, and modules that have our folders' names."""
    for name in OUR_FOLDERS:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name}.py of the user was imported')")
    return with_questions(tmp_path)


def with_questions(folder: Path) -> Path:
    """Add questions.jsonl. Only the process that compares answers symbolically can grade against these golds."""
    rows = [row | {"gold_answer": "\\sqrt{8}"} for row in demo_rows(4)]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def environment(binaries: Path) -> dict[str, str]:
    """The environment of a user who has activated the one at `binaries` and set no path."""
    variables = clean_environment() | {"PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
    return {name: value for name, value in variables.items() if name != "PYTHONPATH"}


def run(binaries: Path, folder: Path, *command: str) -> str:
    """Run a program of the environment in the user's folder and return its output."""
    words = [str(binaries / command[0]), *command[1:]]
    done = subprocess.run(
        words, cwd=folder, env=environment(binaries), capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_graded(output: Path) -> None:
    rows = pq.read_table(output / "merged.parquet").to_pylist()
    assert len(rows) == 4
    assert {t["score_status"] for row in rows for t in row["trajectories"]} <= {"correct", "incorrect", "no_answer"}


def test_the_gpu_extra_brings_vllm(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith("METADATA"))
        metadata = archive.read(name).decode()
    assert 'Requires-Dist: vllm<0.34,>=0.26; extra == "gpu"' in metadata
    assert "Requires-Python: <3.14,>=3.11" in metadata
    for needed in ("ray[default]", "transformers", "peft", "torch", "pyarrow", "pandas", "pydantic", "rich", "math-verify"):
        assert f"Requires-Dist: {needed}" in metadata, needed


def test_one_name_is_installed(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        top = {name.partition("/")[0] for name in archive.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"rollout_ray"}


def test_the_node_provider_is_where_ray_looks_for_it(wheel: Path) -> None:
    """`ray up` and the autoscaler import it by its name, from whatever folder they run in."""
    files = ("lambda_provider.py", "lambda.yaml", "local.yaml")
    with zipfile.ZipFile(wheel) as archive:
        assert {f"rollout_ray/cluster/{name}" for name in files} <= set(archive.namelist())


def test_the_documentation_is_in_the_wheel(wheel: Path) -> None:
    pages = {f"rollout_ray/docs/{page.name}" for page in (ROOT / "rollout_ray" / "docs").glob("*.md")}
    with zipfile.ZipFile(wheel) as archive:
        assert pages and pages <= set(archive.namelist())


def test_the_installed_package_runs_from_anywhere(installed: Path, packages: Path) -> None:
    print_folder = "from importlib.resources import files; print(files('rollout_ray'))"
    package = Path(run(installed, packages, "python", "-P", "-c", print_folder).strip())
    assert package.is_relative_to(installed.parent)
    page = {file.name for file in (package / "report" / "page").iterdir()}
    assert {"report.html", "report.css", "report.js"} <= page
    model = package / "demo_model"
    assert (model / "model.safetensors").stat().st_size < 10_000_000 and (model / "chat_template.jinja").exists()
    assert run(installed, packages, "rollout", "prepare", "demo", "5", "q.parquet") == "5 questions in q.parquet\n"


def test_an_editable_install_takes_one_name_too(checkout: Path, tmp_path: Path, modules: Path, programs: None) -> None:
    source = tmp_path / "source"
    shutil.copytree(checkout, source, symlinks=True, ignore=shutil.ignore_patterns(".venv", "runs", "path"))
    binaries = install(tmp_path / "environment", "-e", str(source))
    script = modules / "script.py"
    script.write_text(
        "import rollout_ray.actors.scorer, rollout_ray.jobs.submit, rollout_ray.cluster.check\n"
        "from rollout_ray import RunConfig, collect\n"
        "print(rollout_ray.jobs.submit.__file__)"
    )
    assert Path(run(binaries, modules, "python", "script.py").strip()).resolve() == source / "jobs" / "submit.py"


def test_the_grading_process_imports_nothing_from_the_working_directory(
    packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(packages)
    monkeypatch.syspath_prepend(packages)  # as Ray does in its workers
    child = Child(5, 2000)
    task = ["values", ["\\sqrt{8}"], ["2\\sqrt{2}"], [[None]]]
    assert child.compare(json.dumps(task)) == "correct"
    child.kill()


def test_a_run_of_the_demo_engine_beside_packages_of_our_folders_names(installed: Path, packages: Path) -> None:
    words = ("--dataset", "questions.jsonl", "--output_dir", "run", "--arm_set", "greedy", "--replicas", "1")
    run(installed, packages, "rollout", *words)
    assert_graded(packages / "run")


SCRIPT = """
from rollout_ray import RunConfig, collect

simulated = {"sim_tokens_per_second": 1e6}
values = {"engine": {"backend": "simulated", "simulated": simulated}, "output": {"output_dir": "run"}}
collect("questions.jsonl", RunConfig.model_validate(values | {"resources": {"replicas": 1}}))
"""


def test_a_script_beside_modules_of_our_folders_names(installed: Path, modules: Path) -> None:
    (modules / "script.py").write_text(SCRIPT)
    run(installed, modules, "python", "script.py")
    assert_graded(modules / "run")


JOB = """
export RAY_AUTH_MODE=disabled RAY_API_SERVER_ADDRESS=http://127.0.0.1:{dashboard}
ray() {{ python -m ray.scripts.scripts "$@"; }}
(cd / && ray start --head --port={gcs} --dashboard-port={dashboard} --num-cpus=2) >head.log 2>&1 || exit 9
(cd / && {await_agent})
cd {folder}
ray job submit --working-dir . -- rollout --backend simulated --replicas 1 --sim_tokens_per_second 1e6 \\
    --dataset {folder}/questions.jsonl --output_dir {folder}/run >job.log 2>&1
(cd / && ray stop) >/dev/null 2>&1
"""


def test_a_job_from_a_folder_with_modules_of_our_folders_names(installed: Path, modules: Path, run_alone: Command) -> None:
    """Ray puts a job's working directory in front of everything that is installed."""
    places = {"gcs": free_port(), "dashboard": free_port(), "await_agent": AWAIT_JOB_AGENT, "folder": modules}
    run_alone(JOB.format(**places), modules, environment(installed))
    assert (modules / "run" / "merged.parquet").exists(), (modules / "job.log").read_text()
    assert_graded(modules / "run")
