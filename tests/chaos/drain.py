"""Drain one node of a cluster during a run, like a spot reclaim. Run it in its own namespaces.

python -m tests.chaos.drain FOLDER
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import ray

from rollout_ray.config.schema import RunConfig
from rollout_ray.storage.run_directory import RunDirectory
from tests.chaos.scenarios import Cluster, Outcome, check, environment, write_questions
from tests.conftest import ROOT

ENGINES = 6  # on the head and two more nodes
SCORERS = 3
# Short batches end soon after the notice. Two engines are left then, so the run lasts until the moved ones have started.
FLAGS = ("--backend", "simulated", "--sim_tokens_per_second", "500", "--max_num_seqs", "16", "--max_tokens", "400")
FLAGS += ("--replicas", str(ENGINES), "--scorers", str(SCORERS), "--flush_seconds", "3600", "--part_rows", "100000")
MANY_FINISHED = re.compile(r"\b[1-9][\d,]{2,}/[\d,]+ trajectories")


def head_id(address: str) -> str:
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    head: str = next(node["NodeID"] for node in ray.nodes() if node["NodeManagerAddress"] == "127.0.0.1")
    ray.shutdown()
    return head


def main(folder: Path) -> None:
    data, out = folder / "questions.parquet", folder / "run"
    write_questions(data, 200)
    cluster = Cluster(2, cpus=2)
    command = [sys.executable, "-m", "rollout_ray.run", "--dataset", str(data), "--output_dir", str(out), *FLAGS]
    with (folder / "log").open("w") as log:
        driver = subprocess.Popen(
            [*command, "--ray_address", cluster.address], env=environment(), cwd=ROOT, stdout=log, stderr=log
        )
        nodes: dict[str, str] = {}
        while driver.poll() is None and not (len(nodes) == ENGINES and MANY_FINISHED.search((folder / "log").read_text())):
            time.sleep(0.2)
            nodes = {e["engine"]: e["node"] for e in RunDirectory(str(out)).events() if e["event"] == "engine_started"}
        # The head is the driver's own node, so it must stay.
        node = next(at for at in nodes.values() if at != head_id(cluster.address))
        words = ["drain-node", "--address", cluster.address, "--node-id", node, "--reason-message", "spot reclaim"]
        words += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--deadline-remaining-seconds", "600"]
        subprocess.run([str(Path(sys.executable).parent / "ray"), *words], env=environment(), check=True, timeout=60)
        driver.wait()
    assert driver.returncode == 0, (folder / "log").read_text()
    found = RunDirectory(str(out)).events()
    (notice,) = (e for e in found if e["event"] == "node_draining")
    assert set(notice["engines"]) == {name for name, at in nodes.items() if at == node}
    later = found[found.index(notice) :]
    moved = {e["engine"]: e["node"] for e in later if e["event"] == "engine_started"}
    assert set(moved) <= set(notice["engines"]) and node not in moved.values()
    assert not [e for e in found if e["event"] == "engine_died"]
    assert "is about to go: what is complete is saved" in (folder / "log").read_text()
    # Each scorer writes one part at the end. Further parts were written at the notice.
    parts = [p.stat().st_mtime for p in (out / "parts").glob("*.parquet")]
    assert len(parts) > SCORERS and min(parts) > notice["time"] - 0.1, (parts, notice)
    outcome = Outcome("drain", 0)
    check(outcome, RunConfig(), data, out)
    assert outcome.whole, outcome
    print(f"moved {sorted(moved)} of {sorted(notice['engines'])}; {outcome}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
