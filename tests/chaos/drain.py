"""One node of a cluster is drained, as a spot reclaim announces it, while a run goes on. Run in namespaces of its own.

python -m tests.chaos.drain FOLDER
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from rollout_ray.config import RunConfig
from rollout_ray.ledger import RunDirectory
from tests.chaos.scenarios import Cluster, Outcome, check, environment, write_questions
from tests.conftest import ROOT

FLAGS = ("--backend", "simulated", "--sim_tokens_per_second", "8000", "--flush_seconds", "60", "--replicas", "4")


def main(folder: Path) -> None:
    data, out = folder / "questions.parquet", folder / "run"
    write_questions(data, 400)
    cluster = Cluster(2, cpus=2)
    command = [sys.executable, "-m", "rollout_ray.run", "--dataset", str(data), "--output_dir", str(out), *FLAGS]
    with (folder / "log").open("w") as log:
        driver = subprocess.Popen(
            [*command, "--ray_address", cluster.address], env=environment(), cwd=ROOT, stdout=log, stderr=log
        )
        while driver.poll() is None and "trajectories drawn" not in (folder / "log").read_text():
            time.sleep(0.2)
        nodes = {e["engine"]: e["node"] for e in RunDirectory(str(out)).events() if e["event"] == "engine_started"}
        node = nodes["engine-0"]
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
    # Parts are due after a minute only: one that is older than the end was written at the notice.
    parts = sorted(p.stat().st_mtime for p in (out / "parts").glob("*.parquet"))
    assert parts[0] < found[-1]["time"] - 1 and parts[0] - notice["time"] < 5
    outcome = Outcome("drain", 0)
    check(outcome, RunConfig(), data, out)
    assert outcome.whole, outcome
    print(f"moved {sorted(moved)} of {sorted(notice['engines'])}; {outcome}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
