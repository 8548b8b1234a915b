"""Error rows are counted by reason, and a run of too many of them does not end with 0."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from rollout_ray import Rollouts
from rollout_ray.storage.run_directory import RunDirectory
from rollout_ray.telemetry.early_warnings import EarlyWarnings
from rollout_ray.telemetry.error_reasons import MOST_REASONS, add_reasons, count_reasons, errors_sentence
from rollout_ray.telemetry.summary import Summary, summary_lines
from tests.conftest import Command


def test_reasons_that_differ_in_numbers_are_one() -> None:
    found = count_reasons(["the prompt has 731 tokens", None, "the prompt has 12 tokens", "the prompt has no tokens"])
    assert found == Counter({"the prompt has N tokens": 2, "the prompt has no tokens": 1})
    assert errors_sentence(3, 8, found) == (
        "3 of 8 trajectories are errors: the prompt has N tokens (2); the prompt has no tokens (1)"
    )


def test_few_reasons_are_kept() -> None:
    counts: Counter[str] = Counter()
    add_reasons(counts, Counter({f"reason {chr(97 + i // 26)}{chr(97 + i % 26)}": 2 for i in range(MOST_REASONS + 3)}))
    add_reasons(counts, Counter({"reason aa": 1}))
    assert len(counts) == MOST_REASONS + 1 and counts["another reason"] == 6 and counts["reason aa"] == 3


@pytest.mark.parametrize(("errors", "too_many"), [(50, False), (51, True), (100, True)])
def test_more_than_half_are_too_many(errors: int, too_many: bool) -> None:
    summary = Summary(trajectories=100, errors=Counter({"the prompt has no tokens": errors}))
    summary.finish_reason.update({"error": errors, "stop": 100 - errors})
    assert summary.too_many_errors == too_many
    assert f"{errors} of 100 trajectories are errors: the prompt has no tokens ({errors})" in summary_lines(summary)
    warned = [text for text in EarlyWarnings().news(summary) if "are errors: the prompt has no tokens" in text]
    assert len(warned) == too_many
    assert not replace(summary, trajectories=0, finish_reason=Counter()).too_many_errors


@pytest.mark.parametrize(("errors", "code"), [(50, 0), (51, 11)])
def test_a_run_of_errors_has_an_exit_code_of_its_own(
    errors: int, code: int, tmp_path: Path, rollout: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line alone, with the summary of a run in place of the run."""
    summary = Summary(trajectories=100, errors=Counter({"the prompt has no tokens": errors}))
    summary.finish_reason.update({"error": errors, "stop": 100 - errors})
    rollouts = Rollouts("run/merged.parquet", summary, RunDirectory(str(tmp_path)))
    monkeypatch.setattr("rollout_ray.api.collect.collect", lambda *_, **__: rollouts)
    done = rollout("--dataset", "q.parquet")
    assert done.returncode == code, done.stderr
    assert f"{errors} of 100 trajectories are errors: the prompt has no tokens ({errors})" in done.stdout
    assert ("more than half of the trajectories are errors; run/merged.parquet" in done.stderr) == (code == 11)
