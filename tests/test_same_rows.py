"""The same questions and config give the same rows, whatever the number of engines, the order of the input, the deaths
and the restarts: real Ray, and the simulated engine, whose texts depend on nothing but the seed."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from rollout_ray import Rollouts, RunConfig, collect
from rollout_ray.core.errors import Interrupted
from rollout_ray.results.merged_file import MergedFile
from rollout_ray.results.verify import verify
from tests.conftest import demo_rows
from tests.test_collect import When

QUESTIONS = 60


def config(folder: Path, replicas: int = 1, max_num_seqs: int = 16, **simulated: float) -> RunConfig:
    return RunConfig.model_validate(
        {
            "engine": {
                "backend": "simulated",
                "max_num_seqs": max_num_seqs,
                "simulated": {"sim_tokens_per_second": 2e5, **simulated},
            },
            "arms": {"arm_set": "regime-w-probes"},
            "scoring": {"reward_preset": "regime-w-2"},
            "resources": {"replicas": replicas, "max_engine_deaths": 50},
            "output": {"output_dir": str(folder), "part_rows": 7},
        }
    )


def rows_by_id(rollouts: Rollouts) -> dict[str, dict[str, Any]]:
    """Every question's row, without the names of the engines."""
    rows = rollouts.table().to_pylist()
    for row in rows:
        for trajectory in row["trajectories"]:
            del trajectory["engine"]
    found = {row["question_id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> dict[str, dict[str, Any]]:
    """The rows of an undisturbed run with one engine."""
    return rows_by_id(collect(demo_rows(QUESTIONS), config(tmp_path_factory.mktemp("one") / "run")))


def run_until(happened: Callable[[Rollouts], bool], folder: Path, replicas: int, **options: Any) -> Rollouts:
    """The first of several equal runs in which that happened which the test is about: a slow machine may start the
    second engine when the first has drawn everything, and chance may spare every engine."""
    for attempt in range(5):
        rollouts = collect(demo_rows(QUESTIONS), config(folder / f"run-{attempt}", replicas, **options))
        if happened(rollouts):
            return rollouts
    raise AssertionError("it happened in none of five runs")


def engines(rollouts: Rollouts) -> set[str]:
    return {t["engine"] for row in rollouts.table().to_pylist() for t in row["trajectories"]}


@pytest.mark.parametrize("replicas", [2, 3])
def test_more_engines(tmp_path: Path, expected: dict[str, dict[str, Any]], replicas: int) -> None:
    rollouts = run_until(lambda r: len(engines(r)) > 1, tmp_path, replicas, sim_tokens_per_second=2e4)
    assert rows_by_id(rollouts) == expected and verify(rollouts.run.uri).agrees


def returned_samples(rollouts: Rollouts) -> int:
    return sum(event["draws"] for event in rollouts.run.events() if event["event"] == "given_back")


def test_long_ones_first(tmp_path: Path, expected: dict[str, dict[str, Any]]) -> None:
    """By an earlier run in either layout that holds lengths."""
    collect(demo_rows(QUESTIONS), config(tmp_path / "earlier"))
    ids, found = frozenset(expected), []
    for layout in ("trajectories", "questions"):
        cfg = config(tmp_path / "earlier").model_dump()
        cfg["output"]["layout"] = layout
        collect(demo_rows(QUESTIONS), RunConfig.model_validate(cfg))
        with MergedFile(str(tmp_path / "earlier")) as merged:
            found.append(merged.mean_lengths(ids))
    lengths = {i: fmean(t["num_tokens"] for t in row["trajectories"]) for i, row in expected.items()}
    assert found == [pytest.approx(lengths)] * 2
    cfg = config(tmp_path / "run").model_dump()
    cfg["data"]["lengths_from"] = str(tmp_path / "earlier")
    assert rows_by_id(collect(demo_rows(QUESTIONS), RunConfig.model_validate(cfg))) == expected


def test_a_slow_engine_gives_back_what_it_has_not_begun(tmp_path: Path, expected: dict[str, dict[str, Any]]) -> None:
    options = {"max_num_seqs": 256, "sim_tokens_per_second": 5e4, "sim_straggler": 4.0}
    rollouts = run_until(lambda r: returned_samples(r) > 0, tmp_path, 2, **options)
    assert rows_by_id(rollouts) == expected and verify(rollouts.run.uri).agrees


@pytest.mark.parametrize("seed", [1, 2])
def test_another_order_of_the_input(tmp_path: Path, expected: dict[str, dict[str, Any]], seed: int) -> None:
    rows = demo_rows(QUESTIONS)
    random.Random(seed).shuffle(rows)
    rollouts = collect(rows, config(tmp_path / "run", replicas=2))
    assert rollouts.table().column("prompt").to_pylist() == [row["prompt"] for row in rows]
    assert rows_by_id(rollouts) == expected


def test_engines_that_die(tmp_path: Path, expected: dict[str, dict[str, Any]]) -> None:
    """A question that was in flight at several deaths ends as an error, which is its own outcome; every other row, and
    every key, seed and gold, is what it would have been."""
    rollouts = run_until(lambda r: r.summary.engine_deaths > 0, tmp_path, 2, sim_death_rate=0.003)
    untouched = 0
    for question_id, row in rows_by_id(rollouts).items():
        errors = [t["error"] for t in row["trajectories"] if t["error"]]
        assert all(error.startswith("in flight at several engine deaths") for error in errors)
        due = expected[question_id]
        fixed = ("arm", "sample", "seed", "temperature", "top_p")
        assert [[t[f] for f in fixed] for t in row["trajectories"]] == [[t[f] for f in fixed] for t in due["trajectories"]]
        assert row["gold_answer"] == due["gold_answer"]
        if not errors:
            untouched += 1
            assert row == due
    assert untouched > QUESTIONS / 2
    assert verify(rollouts.run.uri).agrees


def test_a_run_that_was_stopped_in_the_middle(tmp_path: Path, expected: dict[str, dict[str, Any]]) -> None:
    stop = When(lambda view: view.generated_samples >= 200, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Interrupted):
        collect(demo_rows(QUESTIONS), config(tmp_path / "run", 2, sim_tokens_per_second=2e4), progress=stop)
    rows = demo_rows(QUESTIONS)
    random.Random(3).shuffle(rows)  # the rest in another order, by three engines
    rollouts = collect(rows, config(tmp_path / "run", 3))
    assert 0 < rollouts.summary.session_tokens < rollouts.summary.tokens
    assert rows_by_id(rollouts) == expected and verify(str(tmp_path / "run")).agrees
