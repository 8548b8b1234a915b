"""The scoring actor's class, without Ray: what it refuses and what it commits."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from rollout_ray.actors.scorer import ScorerActor
from rollout_ray.config.arms import resolve_arms
from rollout_ray.config.loading import with_fields
from rollout_ray.core.errors import LedgerError
from rollout_ray.core.records import Completion, Generated, Question, RolloutRequest, has_rewards
from rollout_ray.scoring.custom_reward import RewardSources
from rollout_ray.storage.run_directory import RunDirectory
from tests.conftest import simulated_greedy


@pytest.mark.parametrize("remains", ["nothing", "another run"])
def test_a_scorer_on_a_node_that_does_not_see_the_folder_says_so(tmp_path: Path, remains: str) -> None:
    """Moving the folder away stands in for a node with a disk of its own."""
    cfg = simulated_greedy(tmp_path / "run")
    run = RunDirectory(cfg.output.output_dir)
    with run.lease():
        run.open({"seed": 1}, {})
        there = pickle.loads(pickle.dumps(run))
        ScorerActor(0).begin(there, cfg, resolve_arms(cfg), RewardSources())
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        if remains == "another run":
            RunDirectory(run.uri).open({"seed": 2}, {})
        with pytest.raises(
            LedgerError, match=r"does not see the run in .*Give --output_dir a folder that every node shares"
        ):
            ScorerActor(0).begin(there, cfg, resolve_arms(cfg), RewardSources())
        if remains == "nothing":
            assert not (tmp_path / "run").exists()


def test_a_scorer_commits_named_rewards_and_the_reason_of_a_failed_one(tmp_path: Path) -> None:
    functions = {"prints": "tests.misbehaving:prints", "leaves": "tests.misbehaving:leaves"}
    for names, column in ((["prints"], True), (["prints", "leaves"], False)):
        cfg = simulated_greedy(tmp_path / names[-1])
        cfg = with_fields(cfg, {"scoring": {"rewards": {name: functions[name] for name in names}}})
        run, actor = RunDirectory(cfg.output.output_dir), ScorerActor(0)
        with run.lease():
            run.open({"seed": 1}, {})
            actor.begin(run, cfg, resolve_arms(cfg), RewardSources.of_config(cfg.scoring))
            request = RolloutRequest(0, 0, Question("q", "1 + 1?", "2"), 0, 1)
            completion = Completion(0, "Answer: 2", 3, 4, "stop", "engine-0")
            actor.score([Generated(request, (completion,))], {0})
            receipt = actor.flush()
            actor.close()
        part = run.read_part(run.parts()[0])
        (trajectory,) = part.rows([0]).column("trajectories")[0].as_py()
        assert has_rewards(part.schema) is column and receipt.committed == (0,)
        if column:
            found = (trajectory["reward"], trajectory["rewards"], trajectory["score_status"])
            assert found == (1.0, [("prints", 1.0)], "correct")
        else:
            assert (trajectory["reward"], trajectory["score_status"]) == (None, "error")
            assert trajectory["error"] == "the reward leaves fails: SystemExit(3)" and receipt.summary.failures
