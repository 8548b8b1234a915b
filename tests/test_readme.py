"""Every command and code block of the README is run; one that no test knows fails."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rollout_ray.config.loading import load_config
from rollout_ray.config.schema import RunConfig
from rollout_ray.data.demo_questions import generate_problems
from rollout_ray.models.paths import model_folder
from tests.conftest import AWAIT_JOB_AGENT, HANG_S, ROOT, clean_environment, run_alone
from tests.test_merge_lora import saved_adapter

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
YAML = [text for kind, text in BLOCKS if kind == "yaml"]
COMMANDS = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]

# What is not run by test_every_other_command_runs, and which test does run it.
ELSEWHERE = {
    "make demo": "test_make_demo",
    "make test": "test_make_test_runs_checks_and_tests",
    'pip install ".[gpu]"': "test_packaging.py",
}
# Commands that need GPUs say on a machine without any what is missing, with exit code 4.
NEED_GPUS = ("--replicas 8", "--tensor_parallel_size 8")


@pytest.fixture(scope="module")
def clone(checkout: Path) -> Path:
    """A checkout with this environment as its .venv, and what the README's commands expect to find."""
    (checkout / ".venv").symlink_to(Path(sys.executable).parent.parent)
    problems = [problem for problem, _ in zip(generate_problems(5, "test"), range(4), strict=False)]
    lines = [json.dumps({"question": p.question, "answer": f"...\n#### {p.answer}"}) for p in problems]
    (checkout / "train.jsonl").write_text("\n".join(lines))
    (checkout / "path" / "to").mkdir(parents=True)
    for name in ("model", "70b"):
        (checkout / "path" / "to" / name).symlink_to(model_folder("demo"))
    saved_adapter(Path(model_folder("demo")), checkout / "path" / "to" / "lora")
    (checkout / "arms.yaml").write_text(YAML[0])
    (checkout / "thinking.yaml").write_text(YAML[1])
    return checkout


def test_the_commands_are_the_ones_that_are_tested() -> None:
    known = (*ELSEWHERE, "rollout ", "ray ", "export ", "python -m rollout_ray.jobs.")
    assert [c for c in COMMANDS if not c.startswith(known)] == []
    assert {kind for kind, _ in BLOCKS} == {"sh", "yaml", "python"}


def test_every_other_command_runs(clone: Path, tmp_path: Path) -> None:
    """In one shell, as a reader would; each command's exit code and output are kept."""
    commands = [c for c in COMMANDS if c not in ELSEWHERE]
    lines = [f"{{ {c}\n}} >{tmp_path}/log{n} 2>&1; echo $? >{tmp_path}/code{n}" for n, c in enumerate(commands)]
    first_job = next(n for n, c in enumerate(commands) if c.startswith("ray job submit"))
    script = "\n".join([*lines[:first_job], AWAIT_JOB_AGENT, *lines[first_job:]])
    run_alone(script, clone, clean_environment())
    for number, command in enumerate(commands):
        code, log = (tmp_path / f"code{number}").read_text().strip(), (tmp_path / f"log{number}").read_text()
        needs_gpus = any(words in command for words in NEED_GPUS)
        assert code == ("4" if needs_gpus else "0"), f"{command}\n{log}"
        if needs_gpus:
            assert "lower --replicas" in log or "set it to 1 to run on the CPU" in log
    for run in ("first", "own-arms", "job"):
        assert (clone / "runs" / run / "merged.parquet").exists()
    assert len((clone / "first.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("code", "output"),
    list(zip([text for kind, text in BLOCKS if kind == "python"], ["runs/python", "runs/rl/step-1"], strict=True)),
)
def test_a_python_block_runs(clone: Path, code: str, output: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=clone,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"{output}/merged.parquet" in done.stdout


def test_make_demo(clone: Path) -> None:
    """With the environment already there, as on a second call."""
    for name in (".ready", ".test-ready"):
        stamp = clone / ".venv" / name
        if not stamp.exists():
            stamp.touch()
        os.utime(stamp)
    done = subprocess.run(
        ["make", "demo"], cwd=clone, env=clean_environment(), capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "100 questions, 800 trajectories" in done.stdout
    assert ".demo/run/merged.parquet" in done.stdout
    arms = [f"{kind}_{i}" for kind in ("wolfram", "maudlin") for i in range(4)]
    assert all(re.search(rf"{arm} .* 100 .*%", done.stdout) for arm in arms)


def test_make_test_runs_checks_and_tests(clone: Path) -> None:
    planned = subprocess.run(
        ["make", "-n", "test"], cwd=clone, env=clean_environment(), capture_output=True, text=True, check=True
    ).stdout
    for step in ("ruff check .", "ruff format --check .", "mypy", "-m pytest"):
        assert step in planned


def test_the_yaml_blocks_are_valid_configs(clone: Path) -> None:
    arms, thinking = (load_config([], {}, clone / name).arms.arm_list for name in ("arms.yaml", "thinking.yaml"))
    assert [arm.name for arm in arms] == ["terse", "loose"] and len(YAML) == 2
    assert thinking[1].extra_sampling == {"min_p": 0.05}


def test_every_flag_and_column_that_the_readme_names_exists() -> None:
    from rollout_ray.config.loading import FLAGS
    from rollout_ray.core.records import PART_SCHEMA, TRAJECTORY

    assert {f for f in re.findall(r"--(\w+)", README) if "_" in f} <= set(FLAGS)
    for name in [f.name for f in TRAJECTORY] + PART_SCHEMA.names:
        assert f"`{name}`" in README, name
    assert "`--flush_seconds`" in README and RunConfig().output.flush_seconds == 5.0
