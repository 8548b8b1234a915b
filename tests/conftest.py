"""Share inputs, commands and a local Ray between the tests.

The fixtures that start slow programs give their tests a marker (tests/markers.py).
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
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
from tests.markers import (  # noqa: F401 - hooks of pytest
    pytest_collection_modifyitems,
    pytest_runtest_call,
    pytest_runtest_protocol,
)

T = TypeVar("T")
Command = Callable[..., subprocess.CompletedProcess[str]]

HANG_S = 600.0  # on a busy machine a test takes three times as long; what takes longer than this hangs
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
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it likewise

# What VLLM_ENABLE_V1_MULTIPROCESSING must be for vLLM's engine core to have a process of its own, as on GPUs. vLLM reads a
# number; but at the very text "1" its CPU platform adds a process for the worker, which imports everything once more.
OWN_PROCESS = "01"

# A head that has just been started refuses jobs ("No available agent") until its agent has registered.
AWAIT_JOB_AGENT = "for _ in $(seq 60); do ray job submit -- true >/dev/null 2>&1 && break; sleep 0.5; done"


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


def run_here(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process, with its log lines and its signal handler as in a process of its own."""
    from rollout_ray.cli.main import main

    root, ours = logging.getLogger(), logging.getLogger("rollout_ray")
    handlers, level, on_sigterm = root.handlers, ours.level, signal.getsignal(signal.SIGTERM)
    root.handlers = []
    with (
        contextlib.chdir(cwd or "."),
        contextlib.redirect_stdout(io.StringIO()) as stdout,
        contextlib.redirect_stderr(io.StringIO()) as stderr,
    ):
        try:
            code = main(arguments)
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            root.handlers = handlers
            ours.setLevel(level)
            signal.signal(signal.SIGTERM, on_sigterm)
    return subprocess.CompletedProcess(arguments, code, stdout.getvalue(), stderr.getvalue())


def run_command(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `python -m rollout_ray.run` as a process of its own and wait for it."""
    return subprocess.run(
        [sys.executable, "-m", "rollout_ray.run", *arguments],
        cwd=cwd,
        env=clean_environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )


def run_in_namespaces(
    script: str,
    cwd: Path,
    environment: dict[str, str],
    timeout: float = HANG_S,
    unshared: Sequence[str] = (),
    capture: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a bash script in PID and network namespaces of its own, and in those that `unshared` names.

    `ray stop` sees only what the script started, Ray's fixed ports are free, and what the script leaves running ends
    with it. Skip the test where the system allows no namespaces or has no iproute2.
    """
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


@pytest.fixture(autouse=True)
def _log_levels_kept() -> Iterator[None]:
    """Undoes what a command that a test runs in this process sets for all later ones, as --quiet does."""
    root, ours = logging.getLogger(), logging.getLogger("rollout_ray")
    handlers, level, our_level = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    ours.setLevel(our_level)


@pytest.fixture(scope="session")
def programs() -> None:
    """Says that a test starts slow programs by itself: Ray, an engine, the command line, pip, sshd."""


@pytest.fixture(scope="session")
def long_computation() -> None:
    """Says that the cases of a test take more than ten seconds together, or that it imports an engine."""


@pytest.fixture(scope="session")
def rollout() -> Command:
    """Runs the command line in this process. Its `returncode`, `stdout` and `stderr` are those of a process of its own."""
    return run_here


@pytest.fixture(scope="session")
def rollout_process() -> Command:
    """Runs the command line as a process of its own, for what only a process shows: a Ray of its own, signals, exit."""
    return run_command


@pytest.fixture(scope="session")
def run_alone() -> Command:
    """Runs a bash script in namespaces of its own."""
    return run_in_namespaces


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
        # Jobs of some tests connect to it by its address, so it must listen on more than the loopback address.
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
