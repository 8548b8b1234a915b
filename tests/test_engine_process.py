"""Engines in processes that a server has forked: that they do what an engine in its actor does, and that no process is left
behind, whichever is killed. Real vLLM on the CPU."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rollout_ray.actors.engine.engine import Engine
from rollout_ray.actors.engine.exchange import Exchange
from rollout_ray.actors.engine.launch import LaunchSpec
from rollout_ray.actors.engine.out_of_memory import NoMemory, count_oom_kills
from rollout_ray.actors.engine.process import EngineLost, EngineProcess, Order, fork_engine, forking, server_here
from rollout_ray.core.errors import ConfigError
from rollout_ray.core.records import Question, RolloutRequest
from rollout_ray.models.resolved_run import resolve
from tests.conftest import HANG_S, await_that, clean_environment, demo_rows, python_named_modules, simulated_greedy
from tests.processes import ENGINES, servers, workers

QUESTIONS = 12


class Run:
    """A run from the command line, with a Ray and a server of its own."""

    def __init__(self, folder: Path, flags: Sequence[str]) -> None:
        self.output = folder / "run"
        questions = folder / "questions.parquet"
        pq.write_table(pa.Table.from_pylist(demo_rows(QUESTIONS)), questions)
        command = [sys.executable, "-m", "rollout_ray.run", "--quiet", "--dataset", str(questions), "--ignore_eos"]
        command += ["--max_tokens", "96", "--max_num_seqs", "8", "--replicas", "2"]
        command += ["--output_dir", str(self.output), *flags]
        self.process = psutil.Popen(command, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.server = await_that(self._server)

    def _server(self) -> psutil.Process | None:
        assert self.process.poll() is None, self.process.communicate()
        found = servers(self.process)
        return found[0] if found else None

    def engines(self) -> list[psutil.Process]:
        """The engines' processes, once both decode."""
        await_that(lambda: sum(e["event"] == "engine_started" for e in self.events()) >= 2)
        found = self.server.children()
        assert len(found) == 2
        return found

    def events(self) -> list[dict[str, Any]]:
        path = self.output / "events.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def ends_whole(self) -> bytes:
        """Awaits the end and returns what was printed; the merge has proven that every row is there once."""
        printed, _ = self.process.communicate(timeout=HANG_S)
        assert self.process.returncode == 0, printed
        assert pq.read_metadata(self.output / "merged.parquet").num_rows == QUESTIONS
        assert not psutil.wait_procs([self.server], timeout=HANG_S)[1]
        return printed


@pytest.fixture
def start(tmp_path: Path, programs: None) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def started(*flags: str) -> Run:
        runs.append(Run(tmp_path, flags))
        return runs[-1]

    yield started
    for run in runs:
        if run.process.poll() is None:
            run.process.kill()
            run.process.communicate()


def log_of(process: psutil.Process) -> str:
    """Where an engine's process and its actor both write."""
    return os.readlink(f"/proc/{process.pid}/fd/1")


def test_an_engine_whose_process_or_actor_was_killed_is_replaced(start: Callable[..., Run]) -> None:
    run = start()
    first, second = run.engines()
    (actor,) = [one for one in workers(run.process, ENGINES) if log_of(one) == log_of(second)]
    lost = Path(log_of(first)).stem
    first.kill()
    actor.kill()
    assert not psutil.wait_procs([second], timeout=HANG_S)[1]
    printed = run.ends_whole()
    assert b"Unhandled error" not in printed, printed  # as Ray says of each return of a failed call that nobody has read
    died = {e["engine"]: e["error"] for e in run.events() if e["event"] == "engine_died"}
    assert len(died) == 2 and "the engine's process ended" in died[lost]


def test_an_engine_that_no_longer_answers_is_ended_with_its_process(start: Callable[..., Run]) -> None:
    run = start("--engine_hang_seconds", "5")
    stopped, _ = run.engines()
    stopped.suspend()
    assert not psutil.wait_procs([stopped], timeout=HANG_S)[1]
    run.ends_whole()
    assert "no decoding step for" in next(e["error"] for e in run.events() if e["event"] == "engine_died")


def test_nothing_outlives_a_driver_that_was_killed_and_a_run_goes_on_without_a_server(start: Callable[..., Run]) -> None:
    run = start()
    left = [*run.engines(), run.server]
    run.process.kill()
    assert not psutil.wait_procs(left, timeout=HANG_S)[1]
    run.process.communicate()
    again = start()
    again.server.kill()
    again.ends_whole()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, programs: None) -> Iterator[str]:
    """A server that is started in a folder with modules of the user's own that have the names of Python's."""
    before = server_here()
    with contextlib.ExitStack() as stack:
        with contextlib.chdir(python_named_modules(tmp_path_factory.mktemp("folder"))):
            stack.enter_context(forking({"OMP_NUM_THREADS": "1"}))
        address = server_here()
        assert address and address != before
        yield address
    assert server_here() == before
    assert fork_engine(order(), address) is None


CFG = simulated_greedy(Path("unused"))


def test_a_server_stays_until_its_engines_have_ended_and_takes_no_more(programs: None) -> None:
    """As those of a pool on a cluster, which outlive the driver that started the server."""
    others = set(servers(psutil.Process()))
    with forking({"OMP_NUM_THREADS": "1"}) as address:
        (left,) = set(servers(psutil.Process())) - others
        engine = forked(address)
    assert fork_engine(order(), address) is None and not os.path.exists(os.path.dirname(address))
    assert engine.call("start").settings == {"backend": "simulated"}
    del engine
    assert not psutil.wait_procs([left], timeout=HANG_S)[1]


def order(**needs: str) -> Order:
    make = partial(Engine, LaunchSpec.of(resolve(CFG), gpus=0, threads=1))
    return Order({"OMP_NUM_THREADS": "1", **needs}, dict(os.environ), "/", sys.path, make)


def forked(server: str) -> EngineProcess:
    process = fork_engine(order(), server)
    assert process
    return process


def test_it_answers_as_an_engine_does(server: str) -> None:
    engine = forked(server)
    assert engine.call("start").settings == {"backend": "simulated"}
    engine.call("begin", resolve(CFG))
    requests = [RolloutRequest(i, 0, Question(f"q{i}", "how many", None), 0, 1) for i in range(5)]
    done: set[tuple[int, int]] = set()
    answer: Exchange
    answer, finished = engine.call("exchange", requests, 1.0, 0.0)
    while answer.unfinished or answer.chunks:
        done |= {(g.request.ordinal, g.request.first) for batch in finished.values() for g in batch}
        answer, finished = engine.call("exchange", [], 1.0, 0.0)
    assert done == {(i, 0) for i in range(5)}


def test_what_an_engine_raises_is_raised_here(server: str) -> None:
    engine = forked(server)
    with pytest.raises(RuntimeError, match="engine engine-0 was given work before it was started"):
        engine.call("begin", resolve(CFG))
    raising = fork_engine(Order({}, {}, "/", sys.path, _Raising), server)
    assert raising
    for error in (ConfigError("no adapter"), NoMemory("none left", keep_share=True)):
        with pytest.raises(type(error)) as told:
            raising.call("give", error)
        assert vars(told.value) == vars(error) and str(told.value) == str(error)
    with pytest.raises(RuntimeError, match="_Unsendable: it has a lock"):
        raising.call("give", None)


class _Unsendable(Exception):
    """Such as libraries have: it cannot be sent to another process."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class _Raising(Engine):
    def __init__(self) -> None:
        pass

    def give(self, error: Exception | None) -> None:
        raise error or _Unsendable("it has a lock")


def test_no_other_user_can_reach_the_server(server: str) -> None:
    assert stat.S_IMODE(os.stat(os.path.dirname(server)).st_mode) == 0o700


def test_it_has_the_environment_of_its_actor(server: str, tmp_path: Path) -> None:
    process = fork_engine(Order({}, {"MARK": "here"}, str(tmp_path), sys.path, _Surroundings), server)
    assert process and process.call("tell") == ({"MARK": "here"}, str(tmp_path))


class _Surroundings(Engine):
    def __init__(self) -> None:
        pass

    def tell(self) -> tuple[dict[str, str], str]:
        return dict(os.environ), os.getcwd()


def test_a_server_that_imported_with_other_variables_is_of_no_use(server: str) -> None:
    assert fork_engine(order(OMP_NUM_THREADS="3"), server) is None


def test_an_engine_that_was_lost_is_told_from_one_that_raised(server: str) -> None:
    process = fork_engine(Order({}, {}, "/", sys.path, _Ending), server)
    assert process
    with pytest.raises(EngineLost):
        process.call("end")


class _Ending(_Surroundings):
    def end(self) -> None:
        os._exit(1)


def test_an_engine_that_the_system_killed_for_its_memory_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    kills = iter([3, 3, 3, 4])
    monkeypatch.setattr("rollout_ray.actors.engine.process.count_oom_kills", lambda: next(kills))
    for words in ("^the engine's process ended$", "ran out of memory, and the engine was killed"):
        ours, theirs = multiprocessing.Pipe()
        process = EngineProcess(ours)
        theirs.close()
        with pytest.raises(EngineLost, match=words):
            process.call("start")
    assert count_oom_kills() >= 0
