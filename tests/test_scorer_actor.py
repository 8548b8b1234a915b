"""The scoring actor's class, without Ray: what it refuses and what it commits."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from rollout_ray.actors.scorer import ScorerActor
from rollout_ray.config.arms import resolve_arms
from rollout_ray.core.errors import LedgerError
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
