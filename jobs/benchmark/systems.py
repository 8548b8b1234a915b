"""Run one system: `python -m rollout_ray.jobs.benchmark.systems NAME WORKLOAD.json OUTPUT.parquet`.

Each system reads the workload (workload.py), generates, writes a parquet and returns its Account.
The references do not import rollout_ray, like their users. Ours is one call of `collect`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rollout_ray.jobs.benchmark import ray_data, vllm_alone
from rollout_ray.jobs.benchmark.account import Account


def ours(workload: dict[str, Any], output: str) -> Account:
    """Run rollout_ray's `collect`, which also grades and rewards."""
    from rollout_ray import RunConfig, collect

    run = f"{output}.run"
    config = RunConfig.model_validate({**workload["config"], "output": {"output_dir": run}})
    rollouts = collect(None, config)
    os.replace(rollouts.path, output)
    since = time.monotonic() - time.time()  # events use the wall clock
    events = rollouts.run.events()
    started = [event for event in events if event["event"] == "engine_started"]
    ready = [event["time"] + since for event in started]
    ended = min(ready) + rollouts.summary.generation_seconds
    written = events[-1]["time"] + since  # the file exists; Ray ends afterwards, like a reference's engine
    return Account(ready, min(ready), ended, written, [event["phases"] for event in started])


SYSTEMS: dict[str, Callable[[dict[str, Any], str], Account]] = {
    "bare": vllm_alone.bare,
    "bare_defaults": vllm_alone.bare_defaults,
    "seeds_eager": vllm_alone.seeds_eager,
    "seeds_batches": vllm_alone.seeds_batches,
    "ray_data_default": ray_data.with_defaults,
    "ray_data": ray_data.tuned,
    "ours": ours,
}


def main() -> None:
    name, path, target = sys.argv[1:]
    workload = json.loads(Path(path).read_text())
    SYSTEMS[name](workload, target).write(Path(target).with_suffix(".json"))


if __name__ == "__main__":
    main()
