"""What an engine that dies has finished, and no scorer has read: it is drawn again, and holds up no scorer. On real Ray."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from rollout_ray import collect
from rollout_ray.progress import Plain
from rollout_ray.scorers import CALLS
from rollout_ray.view import RunView
from tests.conftest import demo_rows
from tests.processes import worker_pids
from tests.test_collect import simulated
from tests.test_fleet import assert_whole


class Kill(Plain):
    """Kills the engine while the scorer stands still, which goes on once the driver has noticed."""

    engine = scorer = 0

    def update(self, view: RunView) -> None:
        if not self.scorer and view.generated_draws and (started := worker_pids("ScorerActor")):
            (self.scorer,) = started
            os.kill(self.scorer, signal.SIGSTOP)
        elif self.scorer and not self.engine and view.generated_draws > 2000:
            (self.engine,) = worker_pids("EngineActor")
            os.kill(self.engine, signal.SIGKILL)
        elif self.engine and view.engines["engine-0"].state == "starting":
            os.kill(self.scorer, signal.SIGCONT)


def test_a_scorer_is_held_up_by_few_of_them(tmp_path: Path, local_ray: None) -> None:
    """Ray gives a call whose argument was lost up after a second, and keeps the calls behind it waiting."""
    rollouts = collect(demo_rows(500), simulated(tmp_path / "run", replicas=1, speed=5e4), progress=Kill())
    assert_whole(rollouts, 4000)
    (unsent, *sent) = [event["draws"] for event in rollouts.run.events() if event["event"] == "payload_lost"]
    assert len(sent) <= CALLS and unsent > 2 * sum(sent)
    assert rollouts.summary.finish_reason.get("error") is None
