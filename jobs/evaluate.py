"""Evaluate a policy on a question set: accuracy, pass@k and majority@k, each with its 95% interval.

    python -m rollout_ray.jobs.evaluate --dataset test.parquet --model_path path/to/model --output_dir runs/eval
    python -m rollout_ray.jobs.evaluate --dataset test.parquet --n_samples 8 --output_dir runs/eval-8

An evaluation is a run: it takes the same flags, YAML file and environment, and it resumes. If they name no arms, it takes
one greedy sample, or --n_samples samples at temperature 1. It prints a table and writes OUT/evaluation.json.
Trajectories without a grade (an error, a timeout) do not count. Their number is reported.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from rollout_ray.api.collect import Rollouts, collect
from rollout_ray.cli.display import view
from rollout_ray.cli.parser import Parser
from rollout_ray.config.loading import load_config, overlaid
from rollout_ray.config.schema import RunConfig
from rollout_ray.core.errors import ConfigError, RolloutError
from rollout_ray.core.redaction import escape_controls
from rollout_ray.report.estimators import Clustered, majority_at_k, pass_at_k
from rollout_ray.scoring.normal_form import votes
from rollout_ray.storage.files import row_batches

REPORT = "evaluation.json"


@dataclass(frozen=True)
class Estimate:
    """A share over questions in [0, 1], with its 95% interval. None if no question was graded."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Evaluation:
    """The estimates of one arm.

    Attributes:
        arm: Its name.
        questions: Questions with at least one graded sample.
        draws: Graded samples. The file keeps this name.
        ungraded: Samples without a grade, by score status.
        accuracy: Share of correct samples.
        pass_at: By k, over the questions with at least k graded samples.
        majority_at: By k, over the same questions.
    """

    arm: str
    questions: int
    draws: int
    ungraded: dict[str, int]
    accuracy: Estimate
    pass_at: dict[int, Estimate]
    majority_at: dict[int, Estimate]


@dataclass
class _Tally:
    """Sums of one arm over the questions seen so far."""

    ungraded: Counter[str] = field(default_factory=Counter)
    accuracy: Clustered = field(default_factory=Clustered)
    pass_at: dict[int, Clustered] = field(default_factory=dict)
    majority_at: dict[int, Clustered] = field(default_factory=dict)

    def add(self, trajectories: Sequence[dict[str, Any]]) -> None:
        """Add one question's trajectories of the arm."""
        graded = [t for t in trajectories if t["correct"] is not None]
        self.ungraded.update(t["score_status"] for t in trajectories if t["correct"] is None)
        right = [bool(t["correct"]) for t in graded]
        self.accuracy.add([float(each) for each in right])
        for k in (k for k in powers(len(trajectories)) if k <= len(graded)):
            self.pass_at.setdefault(k, Clustered()).add([pass_at_k(len(graded), sum(right), k)], len(graded))
            majority = majority_at_k(votes([t["answer"] for t in graded]), right, k)
            self.majority_at.setdefault(k, Clustered()).add([majority], len(graded))

    def evaluation(self, arm: str) -> Evaluation:
        """Return the estimates of the arm."""
        sums = self.accuracy
        by_k = [{k: _estimate(each) for k, each in sorted(curve.items())} for curve in (self.pass_at, self.majority_at)]
        return Evaluation(arm, sums.clusters, sums.n, dict(sorted(self.ungraded.items())), _estimate(sums), *by_k)


def powers(n: int) -> list[int]:
    """Return 1, 2, 4 ... up to n, and n itself. Return nothing for 0."""
    return sorted({1 << p for p in range(n.bit_length())} | {n}) if n else []


def _estimate(sums: Clustered) -> Estimate:
    """Return the mean of values in [0, 1] with its interval."""
    return Estimate(sums.mean, *sums.share_interval()) if sums.n else Estimate(None, None, None)


def evaluate(rollouts: Rollouts) -> list[Evaluation]:
    """Return the estimates of each arm of a finished run. Read the merged file batch by batch."""
    tallies: dict[str, _Tally] = {}
    with rollouts.run.open_parquet("merged.parquet") as file:
        for batch in row_batches(file, 256, ["trajectories"]):
            for trajectories in batch.column("trajectories").to_pylist():
                by_arm: dict[str, list[dict[str, Any]]] = {}
                for trajectory in trajectories:
                    by_arm.setdefault(trajectory["arm"], []).append(trajectory)
                for arm, its in by_arm.items():
                    tallies.setdefault(arm, _Tally()).add(its)
    return [tally.evaluation(arm) for arm, tally in tallies.items()]


def lines(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return a line for each arm, with its accuracy."""
    found = []
    for one in evaluations:
        ungraded = ", ".join(f"{status} {count}" for status, count in one.ungraded.items()) or "none"
        counts = f"{one.questions} questions, {one.draws} samples, ungraded: {ungraded}"
        found.append(escape_controls(f"{one.arm}: accuracy {_words(one.accuracy)}; {counts}"))
    return found


def table(evaluations: Sequence[Evaluation]) -> Table:
    """Return a table with a row for each arm and k."""
    made = Table("arm", "k", "pass@k", "majority@k")
    for one in evaluations:
        for k, passed in one.pass_at.items():
            made.add_row(escape_controls(one.arm), str(k), _words(passed), _words(one.majority_at[k]))
    return made


def _words(estimate: Estimate) -> str:
    if estimate.value is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.1%}"
    return f"{estimate.value:.1%} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def configured(flags: Sequence[str], environment: dict[str, str], file: str | None) -> RunConfig:
    """Return the run's config. Add an evaluation's arm if the config names none. Raise ConfigError if it is wrong."""
    given = load_config(flags, environment, file)
    if given.output.layout != "questions":
        raise ConfigError(
            f"layout is {given.output.layout}, but an evaluation reads the layout questions. Leave layout unset"
        )
    if "arms" in given.model_fields_set:
        return given
    arm_set = "greedy" if given.sampling.n_samples is None else "samples"
    return overlaid({"arms": {"arm_set": arm_set}}, flags, environment, file)


def main(words: list[str]) -> int:
    """Run an evaluation and return the exit code."""
    parser = Parser(
        prog="python -m rollout_ray.jobs.evaluate", allow_abbrev=False, epilog="It also takes the flags of `rollout`."
    )
    parser.add_argument("--config", help="YAML file")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    try:
        own, flags = parser.parse_known_args(words)
        config = configured(flags, dict(os.environ), own.config)
        console, progress = view(own.quiet)
        rollouts = collect(None, config, progress=progress)
        evaluations = evaluate(rollouts)
        report = {
            "model": config.model.model_path,
            "dataset": config.data.dataset,
            "arms": [asdict(e) for e in evaluations],
        }
        rollouts.run.write_atomically(REPORT, json.dumps(report, indent=1).encode())
    except RolloutError as error:
        print(f"evaluate: {escape_controls(str(error))}", file=sys.stderr)
        return error.exit_code
    console.print(table(evaluations))
    for line in [*lines(evaluations), escape_controls(rollouts.run.path(REPORT))]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
