"""Shared by the tests: generated inputs, the command line as a process of its own, a local Ray that several tests use."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
import pytest

from rollout_ray import RunConfig
from rollout_ray.actors.engine.process import forking
from rollout_ray.actors.vllm_backend.arguments import environment
from rollout_ray.data.demo_questions import generate_problems
from rollout_ray.models.resolved_run import resolve

T = TypeVar("T")

HANG_S = 1000.0  # on a busy machine a test takes twice its time; what takes longer than this hangs
ROOT = Path(__file__).resolve().parent.parent
SHARED_GSM8K = ROOT.parent / "shared" / "data" / "gsm8k" / "train.jsonl"

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# An example may take as long as a busy machine needs for it.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
# Several tests share the cores: an engine's thread that waits for another shall not spin meanwhile.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# A shell starts background commands with SIGINT ignored, and every child inherits that: Ctrl-C could not be tested.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What VLLM_ENABLE_V1_MULTIPROCESSING must be for vLLM's engine core to have a process of its own, as on GPUs. vLLM reads a
# number; but at the very text "1" its CPU platform adds a process for the worker, which imports everything once more.
OWN_PROCESS = "01"

# A head that has just been started refuses jobs ("No available agent") until its agent has registered.
AWAIT_JOB_AGENT = "for _ in $(seq 60); do ray job submit -- true >/dev/null 2>&1 && break; sleep 0.5; done"


# Files that take minutes and come late in the alphabet: at the end one process would be at work and two idle.
LONGEST_FIRST = (
    "test_readme.py", "test_job.py", "test_fleet.py", "test_elastic.py", "test_pool.py", "test_pool_names.py",
    "test_run.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def python_named_modules(folder: Path) -> Path:
    """Fill a user's folder with modules that have the names of Python's own, and return it. None can be imported."""
    for name in ("json", "logging", "numbers", "queue", "random", "resource", "secrets", "socket", "types", "typing"):
        (folder / f"{name}.py").write_text(f"raise ImportError('{name}.py of the user was imported')")
    return folder


def demo_rows(count: int, seed: int = 1) -> list[dict[str, str]]:
    """Questions that the demo model was not trained on, as an input."""
    problems = itertools.islice(generate_problems(seed, "test"), count)
    return [{"prompt": p.question, "gold_answer": p.answer} for p in problems]


def simulated_greedy(output: Path, layout: str = "questions", **sections: Any) -> RunConfig:
    """A run of one simulated engine that is over in a moment, under one arm; `sections` replace whole ones."""
    values: dict[str, Any] = {
        "engine": {"backend": "simulated", "simulated": {"sim_tokens_per_second": 1e6}},
        "arms": {"arm_set": "greedy"},
        "output": {"output_dir": str(output), "layout": layout},
        "resources": {"replicas": 1},
    }
    return RunConfig.model_validate(values | sections)


def clean_environment() -> dict[str, str]:
    """The environment without anything that steers a run."""
    dropped = ("ROLLOUT_", "RAY_ADDRESS", "RAY_AUTH")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    return kept | {"PATH": path, "PYTHONUNBUFFERED": "1", "RAY_USAGE_STATS_ENABLED": "0"}


def rollout(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs `python -m rollout_ray.run` as a process of its own and waits for it."""
    return subprocess.run(
        [sys.executable, "-m", "rollout_ray.run", *arguments],
        cwd=cwd,
        env=clean_environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )


def run_alone(
    script: str,
    cwd: Path,
    environment: dict[str, str],
    timeout: float = HANG_S,
    unshared: Sequence[str] = (),
    capture: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Runs a bash script in PID and network namespaces of its own (and the further ones that `unshared` names): `ray
    stop` sees nothing but what the script started, Ray's fixed ports are free, and whatever it leaves running ends with
    it. Skips where the system allows no namespaces or has no iproute2."""
    unshare = ["unshare", *unshared, "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if os.geteuid() != 0:
        unshare += ["--user", "--map-root-user"]
    loopback = "ip link set lo up"
    if shutil.which("unshare") is None or subprocess.run([*unshare, *loopback.split()], capture_output=True).returncode:
        pytest.skip("this system allows no namespaces, or has no iproute2")
    return subprocess.run(
        [*unshare, "bash", "-c", f"{loopback}\n{script}"],
        cwd=cwd,
        env=environment,
        capture_output=capture,
        text=True,
        timeout=timeout,
        check=False,
    )


def await_that(condition: Callable[[], T], seconds: float = HANG_S) -> T:
    """What the condition gives once that is true."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)
    return value


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tracked files, as a clone would hold them."""
    folder = tmp_path_factory.mktemp("checkout")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    return folder


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A local Ray that stays up between the tests that ask for it, and a server that engines of a run by `collect` or a
    pool are forked from, as where such a run starts its own Ray."""
    import ray

    with forking(environment(resolve(RunConfig()), gpus=0, threads=2)):
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield
        ray.shutdown()


@pytest.fixture
def folders(tmp_path: Path) -> Callable[[], Path]:
    """A new output folder at each call."""
    numbers = itertools.count()
    return lambda: tmp_path / f"run-{next(numbers)}"


@pytest.fixture(scope="session")
def gsm8k() -> Path:
    """GSM8K's training split, where it lies beside the checkout."""
    if not SHARED_GSM8K.exists():
        pytest.skip(f"GSM8K is not at {SHARED_GSM8K}")
    return SHARED_GSM8K
