"""Kill a node whose results no scorer has read. They are generated again and delay no scorer.

Run it in its own namespaces: python -m tests.chaos.lost_node FOLDER
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import psutil
import ray

from rollout_ray import RunConfig, collect
from rollout_ray.telemetry.progress import Plain
from rollout_ray.telemetry.run_view import RunView
from tests.chaos.scenarios import RAYLET, SCORER, TITLES, Cluster, Outcome, check, environment, found, write_questions

ACTORS = 4  # number of engines and of scorers, which Ray spreads over the two nodes
# Every result goes through the node's object store, however small, and a node counts as dead after 2 s.
SYSTEM = {"max_direct_call_object_size": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}


class Kill(Plain):
    """Kill the other node while the scorers on the driver's node are suspended, and resume them afterwards."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self._cluster, self._stopped = cluster, list[psutil.Process]()
        self.killed_at = self.noticed_at = 0.0

    def update(self, view: RunView) -> None:
        if not self.killed_at:
            if view.generated_samples and not self._stopped:
                head = found(TITLES[RAYLET])[0].pid
                self._stopped = [scorer for scorer in found(TITLES[SCORER]) if scorer.ppid() == head]
                for scorer in self._stopped:
                    scorer.suspend()
            if view.generated_samples > 600:
                self._cluster.workers()[0].kill()
                self.killed_at = time.monotonic()
        elif not self.noticed_at and sum(node["Alive"] for node in ray.nodes()) == 1:
            self.noticed_at = time.monotonic()
            for scorer in self._stopped:
                scorer.resume()


def attempt(cluster: Cluster, data: Path, out: Path) -> tuple[int, float]:
    """Run once. Return the number of lost payloads, and the seconds from the noticed death to the end."""
    cfg = RunConfig.model_validate(
        {
            "output": {"output_dir": str(out)},
            "engine": {"backend": "simulated", "simulated": {"sim_tokens_per_second": 2e4}},
            "resources": {"ray_address": cluster.address, "replicas": ACTORS, "scorers": ACTORS, "max_engine_deaths": 9},
        }
    )
    progress = Kill(cluster)
    rollouts = collect(data, cfg, progress=progress)
    took = time.monotonic() - progress.noticed_at
    outcome = Outcome("lost node", 0)
    check(outcome, cfg, data, out)
    assert outcome.whole, outcome
    return [event["event"] for event in rollouts.run.events()].count("payload_lost"), took


def main(folder: Path) -> None:
    os.environ.clear()
    os.environ.update(environment())
    data = folder / "questions.parquet"
    write_questions(data, 200)
    cluster = Cluster(1, 2, f"--system-config={json.dumps(SYSTEM)}")
    lost = number = 0
    took = 0.0
    while not lost:  # by chance all scorers may be on the other node, or all engines on the driver's node
        lost, took = attempt(cluster, data, folder / f"run-{number}")
        cluster.add()
        number += 1
    print(f"{lost} payloads lost, done {took:.0f} s after the death was noticed")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
