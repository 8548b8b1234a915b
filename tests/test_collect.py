"""collect() end to end: real Ray; real vLLM where text matters, the simulated engine where faults or speed do."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from rollout_ray import Rollouts, RunConfig, collect
from rollout_ray.core.errors import (
    ConfigError,
    EngineError,
    IncompleteError,
    Interrupted,
    LedgerError,
    PlacementError,
    TooManyErrors,
)
from rollout_ray.core.records import Question, Trajectory, sampling_seed
from rollout_ray.telemetry.progress import Plain
from rollout_ray.telemetry.run_view import RunView
from tests.conftest import HANG_S, demo_rows
from tests.processes import ENGINES, SCORERS, later_workers


def config(output: Path, **sections: Any) -> RunConfig:
    return RunConfig.model_validate({"output": {"output_dir": str(output)}, **sections})


def simulated(output: Path, replicas: int = 2, speed: float = 1e6, **faults: float) -> RunConfig:
    engine = {"backend": "simulated", "simulated": {"sim_tokens_per_second": speed, **faults}}
    return config(output, engine=engine, resources={"replicas": replicas, "max_engine_deaths": 50})


def trajectories(rollouts: Rollouts) -> pd.DataFrame:
    """One row a trajectory, in the order of the file."""
    rows = [
        {"question_id": row["question_id"], **trajectory}
        for row in rollouts.table().to_pylist()
        for trajectory in row["trajectories"]
    ]
    return pd.DataFrame(rows)


def keys(rollouts: Rollouts) -> list[tuple[str, str, int, int]]:
    frame = trajectories(rollouts)
    return list(frame[["question_id", "arm", "sample", "seed"]].itertuples(index=False, name=None))


@pytest.fixture(scope="module")
def two_replicas(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Rollouts:
    """30 demo questions under the eight arms, by two vLLM engines on the CPU."""
    output = tmp_path_factory.mktemp("vllm") / "run"
    return collect(demo_rows(30), config(output, resources={"replicas": 2}))


def test_the_merged_file_has_every_trajectory_and_real_rewards(two_replicas: Rollouts) -> None:
    frame = trajectories(two_replicas)
    assert len(frame) == 240 and not frame.duplicated(["question_id", "arm", "sample"]).any()
    assert set(frame["finish_reason"]) == {"stop"} and set(frame["score_status"]) <= {"correct", "incorrect"}
    assert (frame["correct"] == (frame["score_status"] == "correct")).all()
    assert frame["correct"].mean() > 0.5
    assert (frame.loc[frame["correct"], "reward"] >= 1.0).all()
    assert (frame.loc[~frame["correct"], "reward"] <= 0.5).all()
    for row in frame.itertuples():
        assert row.seed == sampling_seed(42, row.question_id, row.arm, row.sample)
    assert set(frame["engine"]) <= {"engine-0", "engine-1"}  # one may have drawn it all before the other had started


def test_the_summary_agrees_with_the_file(two_replicas: Rollouts) -> None:
    frame, summary = trajectories(two_replicas), two_replicas.summary
    assert (summary.questions, summary.trajectories, summary.tokens) == (30, 240, frame["num_tokens"].sum())
    by_arm = frame.groupby("arm", sort=False)
    assert list(summary.arms) == list(by_arm.groups)
    for name, group in by_arm:
        assert summary.arms[str(name)].accuracy == pytest.approx(group["correct"].mean())
        assert summary.arms[str(name)].mean_reward == pytest.approx(group["reward"].mean())
    assert summary.tokens_per_second and summary.tokens_per_second > 0
    assert len(two_replicas.to_pandas()) == 30


def test_the_run_directory_describes_the_run(two_replicas: Rollouts) -> None:
    record = two_replicas.run.record()
    assert record["config"]["resources"]["replicas"] == 2
    assert len(record["arms"]) == 8 and record["versions"]["vllm"] and record["digest"]
    events = [event["event"] for event in two_replicas.run.events()]
    assert events[0] == "begun" and events[-1] == "finished" and events.count("engine_started") in (1, 2)
    metadata = json.loads(pq.read_schema(two_replicas.path).metadata[b"rollout_ray"])
    assert metadata["model"] == "demo" and metadata["config_digest"] == record["digest"] and metadata["vllm"]


def test_one_replica_draws_the_same_keys_and_seeds(two_replicas: Rollouts, tmp_path: Path) -> None:
    one = collect(demo_rows(30), config(tmp_path / "run", resources={"replicas": 1}))
    assert keys(one) == keys(two_replicas)
    assert set(trajectories(one)["engine"]) == {"engine-0"}


def test_a_finished_run_is_merged_again_in_another_layout_without_an_engine(two_replicas: Rollouts) -> None:
    record = two_replicas.run.record()["config"]
    record["output"]["layout"] = "responses"
    before = [event["event"] for event in two_replicas.run.events()]
    again = collect(demo_rows(30), RunConfig.model_validate(record))
    told = [event["event"] for event in again.run.events()][len(before) :]
    assert again.summary.session_tokens == 0 and told and not {"placed", "engine_started"} & set(told)
    assert again.table().column_names == ["prompt", "gold_answer", "responses"]
    record["output"]["layout"] = "questions"
    assert keys(collect(demo_rows(30), RunConfig.model_validate(record))) == keys(two_replicas)


def test_a_changed_config_or_data_set_is_refused(two_replicas: Rollouts) -> None:
    record = two_replicas.run.record()["config"]
    with pytest.raises(LedgerError, match=r"the number of questions was 30 and is 31\. Give another"):
        collect(demo_rows(31), RunConfig.model_validate(record))
    record["sampling"]["seed"] = 7
    with pytest.raises(LedgerError, match=r"sampling\.seed was 42 and is 7"):
        collect(demo_rows(30), RunConfig.model_validate(record))


@pytest.mark.parametrize("faults", [{"sim_death_rate": 0.02}, {"sim_error_rate": 0.05}, {}])
def test_no_row_is_lost_or_doubled_whatever_the_engines_do(
    tmp_path: Path, local_ray: None, faults: dict[str, float]
) -> None:
    rollouts = collect(demo_rows(60), simulated(tmp_path / "run", 3, **faults))
    frame = trajectories(rollouts)
    assert len(frame) == 480 and not frame.duplicated(["question_id", "arm", "sample"]).any()
    errors = frame[frame["finish_reason"] == "error"]
    assert errors["reward"].isna().all() and (errors["score_status"] == "error").all() and errors["error"].notna().all()
    if "sim_death_rate" in faults:
        assert rollouts.summary.engine_deaths > 0
    elif faults:
        assert 0 < len(errors) < 480
    else:
        assert errors.empty


def test_bad_rows_are_error_rows_and_keep_their_place(tmp_path: Path, local_ray: None) -> None:
    rows: list[dict[str, Any]] = [{"prompt": p, "gold_answer": "1", "n": i} for i, p in enumerate(["a", None, " ", "b"])]
    rollouts = collect(rows, simulated(tmp_path / "run"))
    table = rollouts.table()
    assert table.column("n").to_pylist() == [0, 1, 2, 3]
    reasons = [[t["error"] for t in row] for row in table.column("trajectories").to_pylist()]
    assert reasons == [[None] * 8, ["the prompt is null"] * 8, ["the prompt is empty"] * 8, [None] * 8]
    assert rollouts.summary.finish_reason == {"stop": 16, "error": 16}
    assert rollouts.summary.null_rewards == 16


def test_without_gold_nothing_is_graded_and_it_says_so(
    tmp_path: Path, local_ray: None, caplog: pytest.LogCaptureFixture
) -> None:
    rollouts = collect([{"prompt": "a"}, {"prompt": "b"}], simulated(tmp_path / "run"))
    frame = trajectories(rollouts)
    assert set(frame["score_status"]) == {"no_gold"} and frame["correct"].isna().all() and frame["reward"].notna().all()
    assert "has no column 'gold_answer': nothing will be graded" in caplog.text


def test_golds_that_cannot_be_read_are_named_before_the_run(
    tmp_path: Path, local_ray: None, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"prompt": "a", "gold_answer": "18"}, {"prompt": "b", "gold_answer": "$"}]
    rollouts = collect(rows, simulated(tmp_path / "run"))
    assert "1 of the first 2 gold answers cannot be read, such as '$'." in caplog.text
    assert set(trajectories(rollouts)["score_status"]) >= {"bad_gold"}
    assert (rollouts.summary.bad_golds, rollouts.summary.bad_gold) == (1, "'$'")


def test_few_questions_with_many_samples_are_split_and_joined(tmp_path: Path, local_ray: None) -> None:
    # No engine can take all samples at once, so engines that start later get some.
    base = simulated(tmp_path / "run", 4, speed=2_000).model_dump()
    base["engine"]["max_num_seqs"] = 16
    cfg = base | {
        "arms": {"arm_set": "samples"},
        "sampling": {"n_samples": 64},
    }
    rollouts = collect(demo_rows(3), RunConfig.model_validate(cfg))
    frame = trajectories(rollouts)
    assert len(frame) == 192
    assert list(frame["sample"]) == list(range(64)) * 3
    assert frame.groupby("question_id")["engine"].nunique().max() > 1


@pytest.mark.parametrize("layout", ["questions", "trajectories", "responses"])
def test_no_questions_give_an_empty_file(tmp_path: Path, layout: str) -> None:
    import pyarrow as pa

    output = {"output_dir": str(tmp_path / "run"), "layout": layout}
    cfg = RunConfig.model_validate({"engine": {"backend": "simulated"}, "output": output})
    rollouts = collect(pa.table({"prompt": pa.array([], pa.string())}), cfg)
    assert rollouts.table().num_rows == 0 and rollouts.summary.trajectories == 0


def reward_by_length(question: Question, trajectories: Sequence[Trajectory]) -> list[float | None]:
    """A custom reward for the tests: minus the tokens; none for maudlin arms."""
    assert question.prompt
    return [None if t.arm.startswith("maudlin") else -float(t.num_tokens) for t in trajectories]


def test_a_reward_of_ones_own(tmp_path: Path, local_ray: None) -> None:
    values = simulated(tmp_path / "run").model_dump()
    values["scoring"] = {"reward": "tests.test_collect:reward_by_length"}
    frame = trajectories(collect(demo_rows(4), RunConfig.model_validate(values)))
    wolfram = frame["arm"].str.startswith("wolfram")
    assert (frame.loc[wolfram, "reward"] == -frame.loc[wolfram, "num_tokens"]).all()
    assert frame.loc[~wolfram, "reward"].isna().all()
    values["scoring"] = {"reward": "tests.test_collect:nothing"}
    values["output"]["output_dir"] = str(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"scoring.reward tests.test_collect:nothing cannot be loaded"):
        collect(demo_rows(4), RunConfig.model_validate(values))


def unbounded(question: Question, trajectories: Sequence[Trajectory]) -> list[float]:
    return [float("-inf")] * len(trajectories)


def test_a_reward_without_bounds_is_refused_by_name(tmp_path: Path, local_ray: None) -> None:
    """No figure could be drawn of it, nor a mean."""
    values = simulated(tmp_path / "run").model_dump() | {"scoring": {"reward": "tests.test_collect:unbounded"}}
    with pytest.raises(TooManyErrors, match=r"the reward unbounded fails: .*it returned -inf for a trajectory. Return a"):
        collect(demo_rows(4), RunConfig.model_validate(values))


def worded(question: Question, trajectories: Sequence[Trajectory]) -> list[str]:
    return ["high"] * len(trajectories)


def leaving(question: Question, trajectories: Sequence[Trajectory]) -> list[float]:
    sys.exit(3)


@pytest.mark.parametrize(
    ("name", "words"), [("worded", "could not convert string to float"), ("leaving", r"SystemExit\(N\)")]
)
def test_a_reward_that_always_fails_ends_the_run(tmp_path: Path, name: str, words: str, local_ray: None) -> None:
    values = simulated(tmp_path / "run").model_dump() | {"scoring": {"reward": f"tests.test_collect:{name}"}}
    with pytest.raises(TooManyErrors, match=rf"the reward {name} fails: .*{words}.*Correct the function"):
        collect(demo_rows(4), RunConfig.model_validate(values))


def test_ctrl_c_in_the_merge_says_that_all_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_ray: None
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(sys.modules["rollout_ray.api.collect"], "merge", interrupted)
        with pytest.raises(Interrupted, match=r"what is complete is in .*run, and the same command goes on"):
            collect(demo_rows(4), simulated(tmp_path / "run"))
    assert collect(demo_rows(4), simulated(tmp_path / "run")).summary.session_tokens == 0


class When(Plain):
    """A progress that does something once, as soon as a condition on the driver's state holds."""

    def __init__(self, condition: Callable[[RunView], bool], action: Callable[[], None]) -> None:
        super().__init__()
        self.done = False
        self._condition, self._action = condition, action

    def update(self, view: RunView) -> None:
        if not self.done and self._condition(view):
            self.done = True
            self._action()


@pytest.mark.parametrize(("titles", "died"), [(ENGINES, "engine_died"), (SCORERS, "scorer_died")])
def test_a_killed_actor_is_replaced_and_no_row_is_lost(
    tmp_path: Path, local_ray: None, titles: Sequence[str], died: str
) -> None:
    victims = later_workers(titles)

    def kill_one() -> None:
        os.kill(victims().pop(), signal.SIGKILL)

    # A scorer's process may be starting while the first draws come.
    progress = When(lambda view: view.generated_samples >= 200 and bool(victims()), kill_one)
    cfg = simulated(tmp_path / "run", 2, speed=60_000)
    rollouts = collect(demo_rows(100), cfg, progress=progress)
    assert progress.done
    assert len(set(keys(rollouts))) == len(keys(rollouts)) == 800
    assert died in [event["event"] for event in rollouts.run.events()]


def test_ctrl_c_keeps_what_is_complete_and_the_same_call_goes_on(tmp_path: Path, local_ray: None) -> None:
    cfg = simulated(tmp_path / "run", 2, speed=60_000)
    progress = When(lambda view: view.generated_samples >= 400, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Interrupted, match=r"stopped with [1-9]\d* of 100 questions in .*; the same command goes on"):
        collect(demo_rows(100), cfg, progress=progress)
    rollouts = collect(demo_rows(100), cfg)
    assert len(set(keys(rollouts))) == len(keys(rollouts)) == 800
    assert rollouts.summary.session_tokens < rollouts.summary.tokens


def test_every_engine_dying_at_its_start_is_an_error_with_its_words(tmp_path: Path, local_ray: None) -> None:
    engine = {"max_model_len": 512, "extra": {"kv_cache_dtype": "nonsense"}}
    with pytest.raises(EngineError, match=r"engine-\d could not start: .*cache_dtype"):
        collect(demo_rows(2), config(tmp_path / "run", engine=engine))


def test_engines_that_keep_dying_end_the_run_and_not_the_data(tmp_path: Path, local_ray: None) -> None:
    values = simulated(tmp_path / "run", 2, sim_death_rate=1.0).model_dump()
    values["resources"]["max_engine_deaths"] = 0
    with pytest.raises(EngineError, match="every engine died; the last one"):
        collect(demo_rows(50), RunConfig.model_validate(values))
    values["engine"]["simulated"]["sim_death_rate"] = 0.0
    assert len(keys(collect(demo_rows(50), RunConfig.model_validate(values)))) == 400


def test_a_question_that_kills_engines_is_set_aside(tmp_path: Path, local_ray: None) -> None:
    """Every request kills its engine: with enough restarts all questions end as error rows."""
    rollouts = collect(demo_rows(2), simulated(tmp_path / "run", 1, sim_death_rate=1.0))
    frame = trajectories(rollouts)
    assert len(frame) == 16 and set(frame["finish_reason"]) == {"error"}
    assert frame["error"].str.startswith("in flight at several engine deaths").all()


def test_a_run_gives_its_cpus_back_to_the_ray_that_it_was_lent(two_replicas: Rollouts) -> None:
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    whole = placement_group([{"CPU": ray.cluster_resources()["CPU"]}])
    try:
        assert whole.wait(HANG_S)
    finally:
        remove_placement_group(whole)


def test_it_runs_in_a_thread(tmp_path: Path, local_ray: None) -> None:
    found: list[Rollouts] = []
    thread = threading.Thread(target=lambda: found.append(collect(demo_rows(3), simulated(tmp_path / "run"))))
    thread.start()
    thread.join()
    assert len(keys(found[0])) == 24


def test_mistakes_are_named_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no data set was given"):
        collect(None, config(tmp_path / "run"))
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match="output_dir 'rollouts' is relative, and Ray deletes"):
        collect(demo_rows(1), RunConfig())
    assert not (tmp_path / "run").exists() and "ray" not in vars(sys.modules["rollout_ray.api.collect"])


def test_too_many_replicas_are_refused(tmp_path: Path, local_ray: None) -> None:
    with pytest.raises(PlacementError, match="99 engines need a CPU each and Ray has 4"):
        collect(demo_rows(1), config(tmp_path / "run", resources={"replicas": 99}))


def test_a_part_that_vanished_is_found_missing(tmp_path: Path, local_ray: None) -> None:
    cfg = simulated(tmp_path / "run")
    rollouts = collect(demo_rows(10), cfg)
    for part in rollouts.run.parts():
        os.remove(rollouts.run.path(part))
    from rollout_ray.config.schema import DataConfig
    from rollout_ray.data.question_set import load_questions
    from rollout_ray.results.merge import merge

    with pytest.raises(IncompleteError, match="10 of 10 questions are not in the parts"):
        merge(rollouts.run, load_questions(demo_rows(10), DataConfig()), "questions", 8, {})
    assert len(keys(collect(demo_rows(10), cfg))) == 80
