"""Compare a report's statistics with counts made directly from the rows."""

from __future__ import annotations

import json
import random
from dataclasses import astuple
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rollout_ray.api.collect import Rollouts
from rollout_ray.core.records import Completion, Question
from rollout_ray.jobs.evaluate import evaluate
from rollout_ray.report.estimators import wilson
from rollout_ray.report.statistics import Tallies, curve_ks, nice_edges
from rollout_ray.report.timeline import timeline
from rollout_ray.telemetry.summary import Summary
from tests.conftest import demo_rows
from tests.finished_runs import finished

GRADES = {"correct": True, "incorrect": False, "no_answer": False, "timeout": None}


def trajectory(rng: random.Random, arm: str, sample: int) -> dict[str, Any]:
    status = rng.choice(list(GRADES))
    answers = {"correct": "7", "incorrect": rng.choice(["1", "2"]), "no_answer": None, "timeout": "3"}
    return {
        "arm": arm,
        "sample": sample,
        "correct": GRADES[status],
        "score_status": status,
        "answer": answers[status],
        "reward": None if status == "timeout" else rng.uniform(-1, 2),
        "num_tokens": rng.randint(1, 700),
        "num_prompt_tokens": 10,
        "finish_reason": rng.choice(["stop", "length"]),
        "engine": f"engine-{sample % 2}",
    }


@pytest.fixture(scope="module")
def questions() -> list[list[dict[str, Any]]]:
    """40 questions: arm a has one sample, arm b has three."""
    rng = random.Random(5)
    return [[trajectory(rng, "a", 0), *(trajectory(rng, "b", n) for n in range(3))] for _ in range(40)]


@pytest.fixture(scope="module")
def counted(questions: list[list[dict[str, Any]]]) -> dict[str, Any]:
    tallies = Tallies(["a", "b", "unused"])
    for trajectories in questions:
        tallies.add(trajectories, s_wm=0.5)
    result: dict[str, Any] = json.loads(json.dumps(tallies.to_dict(), allow_nan=False))
    return result


def test_means_and_counts_by_arm(questions: list[list[dict[str, Any]]], counted: dict[str, Any]) -> None:
    frame = pd.DataFrame([t for question in questions for t in question])
    for name, rows in [("a", frame[frame["arm"] == "a"]), ("b", frame[frame["arm"] == "b"])]:
        group = counted["groups"][name]
        graded = rows[rows["correct"].notna()]
        assert (group["trajectories"], group["graded"]) == (len(rows), len(graded))
        assert group["accuracy"][0] == pytest.approx(graded["correct"].astype(float).mean())
        assert group["reward"][0] == pytest.approx(rows["reward"].mean())
        assert group["tokens"][0] == pytest.approx(rows["num_tokens"].mean())
        assert group["statuses"] == rows["score_status"].value_counts().to_dict()
        assert group["finishes"] == rows["finish_reason"].value_counts().to_dict()
        assert sum(map(sum, group["histograms"]["tokens"])) == len(rows)
        assert sum(map(sum, group["histograms"]["reward"])) == rows["reward"].notna().sum()
    right = sum(t["correct"] is True for q in questions for t in q if t["arm"] == "a")
    assert counted["groups"]["a"]["accuracy"][1:] == pytest.approx(wilson(right, counted["groups"]["a"]["graded"]))
    assert counted["groups"]["a"]["curve"] is None and counted["groups"]["unused"]["accuracy"] is None
    assert counted["prompt_tokens"] == 1600
    assert counted["engines"]["engine-0"]["trajectories"] == (frame["engine"] == "engine-0").sum()


def test_curves_are_means_over_questions(questions: list[list[dict[str, Any]]], counted: dict[str, Any]) -> None:
    curve = counted["groups"]["b"]["curve"]
    graded = [[t for t in q if t["arm"] == "b" and t["correct"] is not None] for q in questions]
    for place, k in enumerate(curve["k"]):
        enough = [q for q in graded if len(q) >= k]
        shares = [
            sum(any(t["correct"] for t in c) for c in combinations(q, k)) / len(list(combinations(q, k))) for q in enough
        ]
        assert curve["questions"][place] == len(enough)
        assert curve["pass"][place][0] == pytest.approx(sum(shares) / len(shares))
    assert curve["pass"][0][0] == pytest.approx(curve["majority"][0][0])  # one sample is its own majority


def test_difficulty_counts_questions_by_right_samples(
    questions: list[list[dict[str, Any]]], counted: dict[str, Any]
) -> None:
    grades = [[t["correct"] for t in q] for q in questions]
    known = [g for g in grades if None not in g]
    assert counted["difficulty"] == [sum(sum(g) == n for g in known) for n in range(5)]
    assert counted["ungraded"] == len(grades) - len(known) > 0


# The two spellings together outvote the 7s; each of them alone would lose.
SPLIT = ["2\\sqrt{3}", "2 \\sqrt{3}"] * 2 + ["7"] * 3


def test_votes_for_one_wrong_answer_in_two_spellings_count_together() -> None:
    rng = random.Random(2)
    tallies = Tallies(["s"])
    tallies.add([{**trajectory(rng, "s", n), "correct": a == "7", "answer": a} for n, a in enumerate(SPLIT)], 0.5)
    assert tallies.to_dict()["all"]["curve"]["majority"][-1][0] == 0.0


def test_an_evaluation_counts_votes_in_the_same_way(tmp_path: Path) -> None:
    def split(question: Question, sample: int, seed: int, max_tokens: int) -> Completion:
        return Completion(sample, f"\\boxed{{{SPLIT[sample]}}}", 12, 5, "stop", "engine-0")

    arms = {"arm_set": "samples"}
    run = finished(tmp_path, [{"prompt": "?", "gold_answer": "7"}], split, arms=arms, sampling={"n_samples": len(SPLIT)})
    (arm,) = evaluate(Rollouts(run.uri, cast(Summary, None), run))
    assert arm.draws == len(SPLIT) and arm.majority_at[len(SPLIT)].value == 0.0


def graded(question: Question, sample: int, seed: int, max_tokens: int) -> Completion:
    answer = question.gold_answer if seed % 3 else "no number"
    return Completion(sample, f"\\boxed{{{answer}}}", 12, 5, "stop", "engine-0")


@pytest.mark.parametrize("samples", [1, 4])
def test_accuracy_and_pass_at_1_are_one_figure_with_one_interval(tmp_path: Path, samples: int) -> None:
    sections = {"arms": {"arm_set": "samples"}, "sampling": {"n_samples": samples, "temperature": 1.0}}
    run = finished(tmp_path, demo_rows(40), graded, **sections)
    (arm,) = evaluate(Rollouts(run.uri, cast(Summary, None), run))
    for other in (arm.pass_at[1], arm.majority_at[1]):
        assert astuple(other) == pytest.approx(astuple(arm.accuracy))


def test_a_report_shows_one_interval_for_accuracy_and_pass_at_1() -> None:
    rng = random.Random(3)
    tallies = Tallies(["s"])
    for _ in range(30):
        samples = [trajectory(rng, "s", n) for n in range(4)]
        answers = [(f"w{n}", False) if rng.random() < 0.4 else ("7", True) for n in range(4)]
        tallies.add([{**t, "answer": a, "correct": c} for t, (a, c) in zip(samples, answers, strict=True)], 0.5)
    counts = tallies.to_dict()["all"]
    assert counts["curve"]["pass"][0] == pytest.approx(counts["accuracy"])
    assert counts["curve"]["majority"][0] == pytest.approx(counts["accuracy"])


def test_a_selection_votes_for_a_question_with_many_samples() -> None:
    """With 1,000 samples, pass@k reaches 1,000 and majority@k reaches 64 quickly."""
    rng = random.Random(1)
    tallies = Tallies(["s"])
    samples = [
        {**trajectory(rng, "s", n), "correct": n % 5 > 0, "answer": "7" if n % 5 else f"w{n % 3}"} for n in range(1000)
    ]
    tallies.add(samples, 0.5)
    curve = tallies.to_dict()["all"]["curve"]
    assert curve["k"][-1] == 1000 and curve["pass"][-1][0] == 1.0
    voted = {k: mean for k, (mean, _, _) in zip(curve["k"], curve["majority"], strict=True)}
    assert voted[64] == 1.0 and voted[128] is None and voted[1] == pytest.approx(0.8, abs=0.06)


def test_a_run_of_no_questions_has_a_report() -> None:
    assert json.loads(json.dumps(Tallies(["a"]).to_dict(), allow_nan=False))["all"]["trajectories"] == 0


@given(st.floats(-1e4, 1e4), st.floats(0, 1e4), st.booleans())
@example(-5.960464477539063e-08, 1502.0, False)  # an edge is a billionth of a bin too high
def test_edges_cover_every_value_with_few_equal_bins(low: float, width: float, whole: bool) -> None:
    high = low + width
    if whole:
        low, high = float(round(low)), float(round(high))
    edges = nice_edges(low, high, whole=whole)
    steps = [b - a for a, b in pairwise(edges)]
    assert edges[0] <= low + 1e-9 * (1 + abs(low)) and high - 1e-9 * (1 + abs(high)) <= edges[-1] and 1 <= len(steps) <= 34
    assert steps[0] > 0 and steps == pytest.approx([steps[0]] * len(steps), rel=1e-6)
    assert not whole or steps[0] >= 1


def test_the_ks_of_a_curve() -> None:
    assert curve_ks(1) == [1] and curve_ks(8) == list(range(1, 9))
    assert curve_ks(64) == [1, 2, 4, 8, 16, 32, 64] and curve_ks(100) == [1, 2, 4, 8, 16, 32, 64, 100]


def event(time: float, name: str, **fields: Any) -> dict[str, Any]:
    return {"time": 1000.0 + time, "event": name, **fields}


def test_the_timeline_of_a_run_with_a_death_and_a_resume() -> None:
    sessions = timeline(
        [
            event(0, "begun", questions=9),
            event(0.5, "placed", note="two engines"),
            event(10, "engine_started", engine="engine-0", max_num_seqs=8, load_seconds=7.5),
            event(12, "engine_started", engine="engine-10"),
            event(12, "engine_started", engine="engine-2"),
            event(20, "engine_died", engine="engine-2", error="killed"),
            event(21, "load", generated_tokens=500, engines={}),
            event(22, "load", generated_tokens=900),
            event(23, "load"),
            event(24, "early_warning", text="too many are truncated"),
            event(26, "engine_started", engine="engine-2"),
            event(28, "engine_died", engine="engine-10", error="again"),
            event(28, "engine_retired", engine="engine-10"),
            event(30, "engine_idle", engine="engine-0", pending=0),
            event(34, "engine_idle", engine="engine-2"),
            event(35, "unknown kind", engine=7),
            event(100, "resumed", questions=9),
            event(101, "finished", summary={"tokens_per_second": None}),
        ]
    )
    first, second = sessions
    assert (first["seconds"], first["finished"], first["note"]) == (35.0, False, "two engines")
    assert (second["kind"], second["finished"], second["engines"]) == ("resumed", True, [])
    spans = {engine["name"]: engine["spans"] for engine in first["engines"]}
    assert list(spans) == ["engine-0", "engine-2", "engine-10"]
    assert spans["engine-0"] == [["starting", 0.0, 10.0], ["running", 10.0, 30.0], ["idle", 30.0, 35.0]]
    states = [[state, to - begin] for state, begin, to in spans["engine-2"]]
    assert states == [["starting", 12.0], ["running", 8.0], ["starting", 6.0], ["running", 8.0], ["idle", 1.0]]
    assert spans["engine-10"] == [["starting", 0.0, 12.0], ["running", 12.0, 28.0]]
    assert [fault["what"] for fault in first["faults"]] == ["died", "died", "retired"]
    assert first["engines"][0]["facts"] == {"max_num_seqs": 8, "load_seconds": 7.5}
    assert first["load"] == [[21.0, 500], [22.0, 900]] and first["warnings"] == ["too many are truncated"]
    assert timeline([]) == [] and timeline([{"event": "begun"}, {"time": 1.0}]) == []
