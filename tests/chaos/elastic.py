"""Run on an autoscaling cluster that starts without workers. Run it in its own namespaces and /tmp/ray.

python -m tests.chaos.elastic FOLDER v1|v2

Nodes join, and leave before the run ends. With v2, two nodes are killed; v1 does not replace nodes of this provider.
The autoscaler is Ray's own, with its fake provider, whose nodes are raylets on this machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from rollout_ray.config.schema import RunConfig
from rollout_ray.storage.run_directory import RunDirectory
from tests.chaos.scenarios import RAYLET, TITLES, Outcome, check, environment, found
from tests.conftest import ROOT, demo_rows

ADDRESS = "127.0.0.1:6379"  # the port that the fake provider's nodes look for
HEAD_ID = f"{'f' * 51}00000"
ENGINES, WORKERS = 3, 5
QUESTIONS = 700
GONE = "the last node is gone"
# A sample takes 2 s on average and at most 10 s. On engine-0 it takes five times as long, so the others finish first.
FLAGS = ("--backend", "simulated", "--sim_tokens_per_second", str(256 * 50), "--sim_mean_tokens", "100")
FLAGS += ("--max_tokens", "500", "--sim_straggler", "5", "--sim_start_seconds", "2")


def autoscaler_config() -> dict[str, Any]:
    """Return a config with up to five workers of one core.

    Ray's wheel lacks the defaults of the fake provider, so it is an external one with all fields given.
    """
    lists = "initialization_commands setup_commands head_setup_commands worker_setup_commands head_start_ray_commands "
    lists += "worker_start_ray_commands cluster_synced_files rsync_exclude rsync_filter"
    return {
        "cluster_name": "fake",
        "max_workers": WORKERS,
        "upscaling_speed": 100,
        "idle_timeout_minutes": 0.1,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "foreground_node_launch": True,
            "worker_liveness_check": False,
            "worker_rpc_drain": True,
        },
        "auth": {"ssh_user": "nobody", "ssh_private_key": "/dev/null"},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in lists.split()},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": {"CPU": 1, "object_store_memory": 10**8},
                "node_config": {},
                "min_workers": 0,
                "max_workers": WORKERS,
            },
        },
    }


def start_head(folder: Path, version: str) -> None:
    config = folder / "autoscaler.json"
    config.write_text(json.dumps(autoscaler_config()))
    extra = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID}
    extra |= {"RAY_CLOUD_INSTANCE_ID": HEAD_ID, "RAY_enable_autoscaler_v2": str(int(version == "v2"))}
    extra |= {"RAY_health_check_period_ms": "1000"}  # a killed node is noticed after 5 s instead of 15
    words = ["start", "--head", "--num-cpus=0", "--include-dashboard=false", f"--autoscaling-config={config}"]
    ray = str(Path(sys.executable).parent / "ray")
    subprocess.run([ray, *words], env=environment() | extra, check=True, capture_output=True, timeout=120)


def workers() -> list[psutil.Process]:
    """Return the raylets except the head's, the oldest first."""
    return sorted(found(TITLES[RAYLET]), key=lambda p: p.create_time())[1:]


class Play:
    """The observed run: its events, and moments in seconds from its start."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "questions.parquet"
        self.out = folder / "run"
        self._log = folder / "log"
        rows = [{"question_id": f"q{number}", **row} for number, row in enumerate(demo_rows(QUESTIONS))]
        pq.write_table(pa.Table.from_pylist(rows), self.data)
        self.began = time.time()
        with self._log.open("w") as log:
            self.driver = subprocess.Popen(
                self.command(ENGINES, self.out), env=environment(), cwd=ROOT, stdout=log, stderr=log
            )

    def command(self, replicas: int, out: Path) -> list[str]:
        words = [sys.executable, "-m", "rollout_ray.run", "--dataset", str(self.data), "--output_dir", str(out)]
        return [*words, *FLAGS, "--replicas", str(replicas), "--ray_address", ADDRESS]

    def events(self, name: str) -> list[dict[str, Any]]:
        return [e for e in RunDirectory(str(self.out)).events() if e["event"] == name]

    def wait(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 150
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not come\n{self._log.read_text()}"
            assert self.driver.poll() is None or what == GONE, self._log.read_text()
            time.sleep(0.1)
        self.say(what)

    def say(self, what: str, at: float | None = None) -> None:
        print(f"{(at or time.time()) - self.began:6.1f} s  {what}", flush=True)

    def finish(self) -> None:
        assert self.driver.wait(120) == 0, self._log.read_text()
        self.say("the run has ended")


def refuse_too_many(play: Play) -> None:
    """A run that needs more nodes than the autoscaler's maximum is refused at once."""
    command = play.command(WORKERS + 1, play.out.with_name("refused"))
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 4 and "nodes hold 5 at most; lower --replicas" in done.stderr, done


def kill(play: Play, node: str, why: str) -> None:
    """Kill the node's raylet, as if its machine were gone."""
    (raylet,) = (p for p in workers() if p.environ()["RAY_OVERRIDE_NODE_ID_FOR_TESTING"] == node)
    raylet.kill()
    play.say(f"node {node[-1]} is killed: {why}")


def kill_nodes(play: Play) -> None:
    """One while its engine starts, one while its engine draws, which is not engine-0: that is to be the last."""

    def drawing() -> list[str]:
        return [e["node"] for e in play.events("engine_started") if e["engine"] != "engine-0"]

    play.wait("the run has seen a node join", lambda: bool(play.events("nodes")))
    kill(play, play.events("nodes")[0]["joined"][0], "its engine starts")
    play.wait("a fast engine draws", lambda: bool(drawing()))
    kill(play, drawing()[0], "its engine draws")
    play.wait("its engine's death is noticed", lambda: any(e["started"] for e in play.events("engine_died")))


def main(folder: Path, version: str) -> None:
    start_head(folder, version)
    assert not workers()
    play = Play(folder)
    if version == "v2":
        kill_nodes(play)
    else:
        play.wait("two engines draw", lambda: len(play.events("engine_started")) >= 2)
    play.wait("an engine is let go", lambda: bool(play.events("engine_let_go")))
    play.finish()
    play.wait(GONE, lambda: not workers())
    if version == "v1":
        refuse_too_many(play)
    told = RunDirectory(str(play.out)).events()
    for event in (event for event in told if event["event"] != "load"):
        detail = {k: v for k, v in event.items() if k in ("engine", "count", "started", "pending")}
        play.say(f"    {event['event']} {detail}", event["time"])
    let_go = next(n for n, e in enumerate(told) if e["event"] == "engine_let_go")
    assert {e["count"] for e in told[let_go:] if e["event"] == "nodes"} & {1, 2}, "no node went before the run's end"
    outcome = Outcome(f"elastic {version}", 0)
    check(outcome, RunConfig(), play.data, play.out)
    assert outcome.whole, outcome
    print(outcome)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
