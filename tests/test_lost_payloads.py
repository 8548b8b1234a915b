"""What an engine has handed over, and no scorer has read, outlives it. On real Ray."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from rollout_ray import collect
from rollout_ray.telemetry.progress import Plain
from rollout_ray.telemetry.run_view import RunView
from tests.conftest import demo_rows
from tests.processes import ENGINES, SCORERS, later_workers
from tests.test_collect import simulated
from tests.test_fleet import assert_whole


class Kill(Plain):
    """Kills the engine while the scorer stands still, which goes on once the driver has noticed."""

    engine = scorer = 0

    def __init__(self) -> None:
        super().__init__()
        self._engines, self._scorers = later_workers(ENGINES), later_workers(SCORERS)

    def update(self, view: RunView) -> None:
        if not self.scorer and view.generated_samples and (started := self._scorers()):
            (self.scorer,) = started
            os.kill(self.scorer, signal.SIGSTOP)
        elif self.scorer and not self.engine and view.generated_samples > 2000:
            (self.engine,) = self._engines()
            os.kill(self.engine, signal.SIGKILL)
        elif self.engine and view.engines["engine-0"].state == "starting":
            os.kill(self.scorer, signal.SIGCONT)


def test_what_a_dead_engine_handed_over_is_not_drawn_again(tmp_path: Path, local_ray: None) -> None:
    rollouts = collect(demo_rows(500), simulated(tmp_path / "run", replicas=1, speed=5e4), progress=Kill())
    assert_whole(rollouts, 4000)
    events = [event["event"] for event in rollouts.run.events()]
    assert "engine_died" in events and "payload_lost" not in events
    assert rollouts.summary.session_tokens == rollouts.summary.tokens
