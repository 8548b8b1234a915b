"""A budget: how it is written, and a run that stops at its end and goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rollout_ray import Rollouts, RunConfig, collect
from rollout_ray.config.budget import seconds_of
from rollout_ray.config.loading import load_config
from rollout_ray.core.errors import BudgetSpent, ConfigError
from rollout_ray.driver.budget import refuse_a_budget_that_saved_nothing, spent_words
from rollout_ray.results.verify import verify
from rollout_ray.storage.run_directory import RunDirectory
from rollout_ray.telemetry.engine_stats import ArmCount
from rollout_ray.telemetry.progress import Silent
from rollout_ray.telemetry.run_view import RunView
from tests.conftest import demo_rows


@pytest.mark.parametrize(
    ("budget", "price", "seconds"),
    [
        ("30m", None, 1800), ("2h", None, 7200), ("1h30m", None, 5400), ("90s", None, 90), ("5", None, 300),
        ("1.5h", 3.0, 5400), ("$20", 8.0, 9000), ("$ 0.50", 1.0, 1800), ("2 H", None, 7200),
    ],
)  # fmt: skip
def test_a_budget_is_a_time_or_money(budget: str, price: float | None, seconds: float) -> None:
    assert seconds_of(budget, price) == seconds


@pytest.mark.parametrize("budget", ["", "soon", "30 minutes", "$", "m", "5m2h", "$20", "0m", "nan"])
def test_another_word_is_refused_with_a_remedy(budget: str) -> None:
    with pytest.raises(ConfigError, match=r"resources.*(give|leave)"):
        load_config(["--budget", budget])


def test_a_budget_does_not_make_another_run() -> None:
    assert load_config(["--budget", "$5", "--price_per_hour", "2"]).digest() == RunConfig().digest()


def spent(committed: int, ended: int) -> RunView:
    """A session of 42 s over 20 questions of 8 samples."""
    view = RunView(total=20, total_samples=160, committed=committed, arm_names=["a"] * 8)
    view.began = view.generation_began = time.monotonic() - 42
    view.deliver(ended, {"a": ArmCount(ended, ended)})
    return view


def test_a_budget_that_saved_nothing_says_what_would_do() -> None:
    """It said that the same command goes on, and that would have begun again for ever."""
    said = spent_words(spent(0, 40), "42s", "0 of 20 questions in runs/a", 0)
    assert said.startswith("the budget of 42s is spent with 0 of 20 questions in runs/a. Nothing was saved: 40 of 160")
    assert "Give a --budget of about 168s for all of them, or a smaller max_tokens" in said.replace("169s", "168s")
    assert "goes on" not in said and "Give a longer --budget" in spent_words(spent(0, 0), "42s", "0 of 20 questions", 0)


def test_a_budget_that_saved_something_says_what() -> None:
    assert spent_words(spent(3, 40), "42s", "3 of 20 questions", 0) == (
        "the budget of 42s is spent with 3 of 20 questions; the same command goes on for as long again"
    )
    assert spent_words(spent(0, 40), "42s", "0 of 20 questions", 40) == (
        "the budget of 42s is spent with 0 of 20 questions, and 40 trajectories of other questions; the same command goes "
        "on for as long again"
    )


@pytest.mark.parametrize(
    ("stopped", "seconds", "refused"),
    [
        ({"spent": True, "committed": 0, "saved_samples": 0, "budget_seconds": 75.0, "needed_seconds": 9.2}, 75.0, True),
        ({"spent": True, "committed": 0, "saved_samples": 0, "budget_seconds": 75.0, "needed_seconds": None}, 60.0, True),
        ({"spent": True, "committed": 0, "saved_samples": 0, "budget_seconds": 75.0, "needed_seconds": 9.2}, 76.0, False),
        ({"spent": True, "committed": 0, "saved_samples": 0, "budget_seconds": 75.0, "needed_seconds": 9.2}, None, False),
        ({"spent": True, "committed": 1, "budget_seconds": 75.0, "needed_seconds": 200.2}, 75.0, False),
        ({"spent": False, "committed": 0, "saved_samples": 0, "budget_seconds": 75.0, "needed_seconds": 9.2}, 75.0, False),
        ({"spent": True, "committed": 0, "saved_samples": 0}, 75.0, False),
        ({"spent": True, "committed": 0, "saved_samples": 9, "budget_seconds": 75.0, "needed_seconds": 9.2}, 75.0, False),
        ({"spent": True, "committed": 0, "budget_seconds": 75.0, "needed_seconds": 200.2}, 75.0, False),
    ],
)
def test_a_budget_that_saved_nothing_is_refused_the_next_time(
    stopped: dict[str, Any], seconds: float | None, refused: bool
) -> None:
    events = [{"event": "begun"}, {"event": "stopped", **stopped}, {"event": "resumed"}]
    with pytest.raises(ConfigError, match=r"no trajectory ended.*Give a") if refused else nullcontext():
        refuse_a_budget_that_saved_nothing(events, "75s", seconds)


class AnHourLater(Silent):
    """Moves the session's beginning an hour back once it is `due`, and counts the updates after that."""

    moved = False
    later = 0

    def __init__(self, due: Callable[[RunView], bool]) -> None:
        self._due = due

    def update(self, view: RunView) -> None:
        self.later += self.moved
        if not self.moved and self._due(view):
            view.began -= 3600
            self.moved = True


def test_a_run_stops_at_its_budget_and_the_same_call_goes_on(tmp_path: Path, local_ray: None) -> None:
    values: dict[str, Any] = {
        "engine": {"backend": "simulated", "simulated": {"sim_tokens_per_second": 2_000}},
        "resources": {"budget": "1h"},
        "output": {"output_dir": str(tmp_path / "run"), "flush_seconds": 0.3},
    }
    clock = AnHourLater(lambda view: view.committed > 0)
    with pytest.raises(BudgetSpent, match=r"the budget of 1h is spent with [1-9]\d* of 300 questions .*goes on") as spent:
        collect(demo_rows(300), RunConfig.model_validate(values), progress=clock)
    assert spent.value.exit_code == 9 and clock.moved and clock.later == 0
    run = RunDirectory(str(tmp_path / "run"))
    stopped = run.events()[-1]
    assert stopped["event"] == "stopped" and stopped["spent"] and 0 < stopped["committed"] < 300
    assert stopped["committed"] == len(run.done_ids())
    account = stopped["account"]
    assert sum(account[f"{phase}_seconds"] for phase in ("starting", "generation", "scoring")) > 3600
    values["resources"] = {}
    values["engine"]["simulated"] = {"sim_tokens_per_second": 1e6}
    rollouts = collect(demo_rows(300), RunConfig.model_validate(values))
    assert rollouts.summary.trajectories == 2400 and 0 < rollouts.summary.session_tokens < rollouts.summary.tokens


def test_a_budget_too_short_for_a_question_saves_its_samples(tmp_path: Path, local_ray: None) -> None:
    """Another number of engines and scorers draws the rest, and the rows are those of a run without a stop."""
    values: dict[str, Any] = {
        "engine": {"backend": "simulated", "max_num_seqs": 16, "simulated": {"sim_tokens_per_second": 3_000}},
        "arms": {"arm_set": "samples"},
        "sampling": {"n_samples": 96},
        "resources": {"budget": "1h", "replicas": 1},
        "output": {"output_dir": str(tmp_path / "run")},
    }
    with pytest.raises(BudgetSpent, match=r"0 of 3 questions .*, and [1-9]\d* trajectories of other questions; .*goes on"):
        collect(demo_rows(3), RunConfig.model_validate(values), progress=AnHourLater(lambda view: view.ended_samples >= 20))
    run = RunDirectory(str(tmp_path / "run"))
    saved = run.events()[-1]["saved_samples"]
    assert 20 <= saved < 288 and run.parts() == []
    (file,) = run.partial_files()
    saved_tokens = sum(pq.read_table(run.path(file))["num_tokens"].to_pylist())
    values["resources"] = {"replicas": 2, "scorers": 2}
    values["engine"]["simulated"] = {"sim_tokens_per_second": 1e6}
    resumed = collect(demo_rows(3), RunConfig.model_validate(values))
    values["output"] = {"output_dir": str(tmp_path / "whole")}
    whole = collect(demo_rows(3), RunConfig.model_validate(values))
    assert samples_of(resumed) == samples_of(whole) and resumed.summary.trajectories == 288
    assert [e["kept_samples"] for e in run.events() if e["event"] in ("begun", "resumed")] == [0, saved]
    assert resumed.summary.session_tokens == whole.summary.tokens - saved_tokens and run.partial_files() == []
    assert verify(run.uri).agrees


def samples_of(rollouts: Rollouts) -> list[tuple[Any, ...]]:
    columns = ("arm", "sample", "seed", "full_text", "reward")
    return [
        (row["question_id"], *(trajectory[name] for name in columns))
        for row in rollouts.table().to_pylist()
        for trajectory in row["trajectories"]
    ]
