"""Run every scenario of `make chaos` in its own namespaces, and print one table.

python -m tests.chaos [--seed N] [--short]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from tests.chaos.scenarios import DRIVER, ENGINE, GRADER, RAYLET, SCORER, Outcome, Scenario, found, play

VLLM = ("--replicas", "2", "--max_num_seqs", "32")
LONG = [
    Scenario("engines", (ENGINE,), 8),
    Scenario("scorers", (SCORER,), 8),
    Scenario("grading children", (GRADER,), 8),
    Scenario("driver", (DRIVER,), 4, (4.0, 7.0)),
    Scenario("all but raylets", (ENGINE, SCORER, GRADER, DRIVER), 10, (1.0, 4.0)),
    Scenario("engines at start", (ENGINE,), 5, (0.5, 1.5), flags=(*Scenario("", (), 0).flags, "--sim_start_seconds", "1")),
    Scenario("raylets", (RAYLET,), 4, (3.0, 6.0), raylets=3),
    Scenario("raylets, engines and scorers", (RAYLET, ENGINE, SCORER), 8, (1.5, 4.0), raylets=3),
    Scenario("raylets and driver", (RAYLET, DRIVER), 5, (4.0, 7.0), raylets=2),
    Scenario("vllm engines", (ENGINE,), 3, (8.0, 12.0), 150, VLLM),
    Scenario("vllm driver", (DRIVER,), 2, (12.0, 16.0), 150, VLLM),
    Scenario("vllm raylets", (RAYLET,), 2, (14.0, 18.0), 100, VLLM, raylets=2),
]
# tests.chaos.drain and tests.chaos.lost_node take nodes away.
SHORT = [
    Scenario("all but raylets", (ENGINE, SCORER, GRADER, DRIVER), 6, (0.8, 2.5)),
    Scenario("vllm engines", (ENGINE,), 1, (9.0, 11.0), 60, VLLM),
]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=int(time.time()), help="seed of the kills' order and moments")
    parser.add_argument("--short", action="store_true", help="only the few scenarios of the test suite")
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    outcomes: list[Outcome] = []
    undisturbed: dict[tuple[object, ...], float] = {}
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        for number, scenario in enumerate(SHORT if args.short else LONG):
            place = Path(folder) / str(number)
            place.mkdir()
            kind = (scenario.questions, scenario.flags, scenario.raylets)
            if not args.short and kind not in undisturbed:
                calm = play(replace(scenario, name="undisturbed", kills=0), place, random.Random(0))
                undisturbed[kind] = calm.seconds
                _end_ray()
            outcome = play(scenario, place, random.Random(args.seed + number))
            outcome.lost_s = outcome.seconds - undisturbed.get(kind, outcome.seconds)
            outcomes.append(outcome)
            print(outcome, flush=True)
            _end_ray()
    Console(width=150).print(_table(outcomes))
    return 0 if all(outcome.whole for outcome in outcomes) else 1


def _end_ray() -> None:
    """Kill the remains of a scenario's cluster or driver. The namespace has no other processes."""
    for process in found(("/raylet/raylet", "gcs_server", "ray::", "ray/dashboard", "monitor.py")):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
            process.wait(10)


def _table(outcomes: list[Outcome]) -> Table:
    table = Table(title="chaos")
    for heading in (
        "run",
        "kills",
        "drivers",
        "expected",
        "found",
        "missing",
        "duplicates",
        "wrong seeds",
        "s",
        "s lost a kill",
    ):
        table.add_column(heading, justify="left" if heading in ("run", "kills") else "right")
    for o in outcomes:
        kills = sum(o.kills.values())
        counts = (o.drivers, o.expected, o.found, o.missing, o.duplicates, o.wrong_seeds)
        times = (f"{o.seconds:.0f}", f"{o.lost_s / kills:.1f}" if kills else "-")
        table.add_row(o.name, ", ".join(f"{n} {k}" for k, n in o.kills.items()), *map(str, counts), *times)
    every = sum(sum(o.kills.values()) for o in outcomes)
    table.caption = f"{len(outcomes)} runs, {every} kills, {sum(o.expected for o in outcomes)} rows expected, " + (
        f"{sum(o.found for o in outcomes)} found, {sum(o.missing for o in outcomes)} missing, "
        f"{sum(o.duplicates for o in outcomes)} duplicates"
    )
    return table


if __name__ == "__main__":
    if os.environ.get("CHAOS_ALONE") != "1":
        from tests.conftest import ROOT, clean_environment, run_in_namespaces

        words = " ".join(sys.argv[1:])
        environment = clean_environment() | {"CHAOS_ALONE": "1", "PYTHONPATH": str(ROOT)}
        done = run_in_namespaces(f"{sys.executable} -m tests.chaos {words}", ROOT, environment, timeout=5000, capture=False)
        sys.exit(done.returncode)
    sys.exit(main())
