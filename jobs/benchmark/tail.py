"""Simulate the end of a run with long-tailed lengths, and the scheduler's cost; print one table.

    python -m rollout_ray.jobs.benchmark.tail                                        # the scenarios below
    python -m rollout_ray.jobs.benchmark.tail --engines 1000 --questions 1250000     # 10 million samples, two minutes

simulated_engine.py models the engines.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from rollout_ray.jobs.benchmark.simulated_engine import PLACES, Workload
from rollout_ray.jobs.benchmark.simulation import Outcome, simulate

STAGGERED = tuple(i * 0.5 for i in range(8))
SCENARIOS = {
    "GSM8K: 7,473 x 8": Workload(7473, 8, sigma=0.5),
    "one length: 500 x 8 on 2": Workload(500, 8, engines=2, sigma=0.0),
    "one length: 500 x 8 on 2, 0.8 s apart": Workload(500, 8, engines=2, sigma=0.0, starts=(0.0, 0.8)),
    "one length: 1,500 x 8": Workload(1500, 8, sigma=0.0),
    "one length: 1,500 x 8, starts over 4 s": Workload(1500, 8, sigma=0.0, starts=STAGGERED),
    "500 x 8": Workload(500, 8, sigma=0.5),
    "500 x 8, starts over 4 s": Workload(500, 8, sigma=0.5, starts=STAGGERED),
    "500 x 8, one starts 30 s late": Workload(500, 8, sigma=0.5, starts=(30.0,)),
    "500 x 8, one at half speed": Workload(500, 8, sigma=0.5, speeds=(0.5,)),
    "30 x 64": Workload(30, 64, sigma=0.5),
    "30 x 64, starts over 4 s": Workload(30, 64, sigma=0.5, starts=STAGGERED),
    "long tail: 7,473 x 8": Workload(7473, 8),
    "long tail, long first": Workload(7473, 8, long_first=True),
    "long tail, 128 places": Workload(1000, 8, places=128),
    "long tail, 128 places, long first": Workload(1000, 8, places=128, long_first=True),
    "long tail, one starts 30 s late": Workload(7473, 8, starts=(30.0,)),
    "long tail, one at half speed": Workload(7473, 8, speeds=(0.5,)),
    "long tail, one at quarter speed": Workload(7473, 8, speeds=(0.25,)),
    "long tail, KV for 128, one at quarter": Workload(2000, 8, fits=128, speeds=(0.25,)),
}


def table(outcomes: Mapping[str, Outcome], seeds: int) -> Table:
    """Return a table with one line a workload."""
    made = Table(title=f"simulated runs, mean of {seeds} seed(s)")
    for heading in ("workload", "s", "bound", "all begun", "unused", "tail", "idle in tail", "idle", "hand-outs"):
        made.add_column(heading, justify="left" if heading == "workload" else "right")
    for heading in ("returned", "answers", "us/sample"):
        made.add_column(heading, justify="right")
    for name, o in outcomes.items():
        shares = (f"{o.unused:.1%}", f"{o.tail:.1f}", f"{o.tail_idle:.0%}", f"{o.idle:.1%}")
        counts = (str(o.handouts), str(o.returned_samples), str(o.answers), f"{o.scheduler_us:.1f}")
        made.add_row(name, f"{o.seconds:.1f}", f"{o.bound:.1f}", f"{o.begun:.1f}", *shares, *counts)
    return made


def mean(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the mean of each field."""
    totals = {name: sum(getattr(o, name) for o in outcomes) for name in vars(outcomes[0])}
    kinds = {name: type(value) for name, value in vars(outcomes[0]).items()}
    return Outcome(**{name: kinds[name](total / len(outcomes)) for name, total in totals.items()})


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m rollout_ray.jobs.benchmark.tail", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--engines", type=int, help="this many engines instead of the scenarios")
    parser.add_argument("--questions", type=int, default=125_000)
    parser.add_argument("--draws", type=int, default=8, help="samples a question")
    parser.add_argument("--places", type=int, default=PLACES, help="sequences that an engine decodes at once")
    parser.add_argument("--sigma", type=float, default=1.0, help="standard deviation of the log lengths")
    parser.add_argument("--driver_ms", type=float, default=0.5, help="driver time for one answer of an engine")
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    works = SCENARIOS
    if args.engines:
        works = {
            f"{args.questions} x {args.draws} on {args.engines}": Workload(
                args.questions, args.draws, args.engines, args.places, sigma=args.sigma
            )
        }
    outcomes = {
        name: mean([simulate(work, driver_s=args.driver_ms / 1e3, seed=seed) for seed in range(args.seeds)])
        for name, work in works.items()
    }
    Console(width=max(160, Console().width)).print(table(outcomes, args.seeds))


if __name__ == "__main__":
    main()
