"""The jobs that hand a run on: preference pairs of several runs, an evaluation, a merged adapter."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rollout_ray.data.prepare import prepare_demo
from rollout_ray.jobs import build_preferences, evaluate
from rollout_ray.report.estimators import majority_at_k, pass_at_k
from tests.conftest import demo_rows
from tests.finished_runs import finished


def test_pairs_of_two_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [finished(tmp_path / name, demo_rows(12, seed)).uri for name, seed in (("a", 1), ("b", 2))]
    target = str(tmp_path / "pairs.parquet")
    assert build_preferences.main([*runs, target, "--pairs", "1"]) == 0
    rows = pq.read_table(target).to_pylist()
    assert (
        f"{len(rows)} dpo rows" in capsys.readouterr().out and len({row["question_id"] for row in rows}) == len(rows) > 12
    )
    assert build_preferences.main(["nowhere", target]) == 6
    assert build_preferences.main([runs[0]]) == 2
    assert build_preferences.main([runs[0], target, "--pairs", "0"]) == 2
    assert [line.split(": ")[0] for line in capsys.readouterr().err.splitlines()] == ["build_preferences"] * 3


def test_an_evaluation(tmp_path: Path, local_ray: None, capsys: pytest.CaptureFixture[str]) -> None:
    prepare_demo(200, 1, tmp_path / "q.parquet")  # of which some are right, whichever end in an error
    words = ["--dataset", str(tmp_path / "q.parquet"), "--output_dir", str(tmp_path / "run"), "--backend", "simulated"]
    words += ["--sim_tokens_per_second", "100000"]
    assert evaluate.main([*words, "--n_samples", "5", "--sim_error_rate", "0.1", "--quiet"]) == 0
    printed = capsys.readouterr().out
    (arm,) = json.loads((tmp_path / "run" / "evaluation.json").read_text())["arms"]
    graded = [
        [t for t in row if t["correct"] is not None]
        for row in pq.read_table(tmp_path / "run" / "merged.parquet").column("trajectories").to_pylist()
    ]
    samples = [t for row in graded for t in row]
    assert arm["arm"] == "samples" and arm["draws"] == len(samples) < 1000
    assert arm["ungraded"] == {"error": 1000 - len(samples)}
    accuracy = arm["accuracy"]
    assert accuracy["value"] == pytest.approx(sum(t["correct"] for t in samples) / len(samples))
    assert 0 <= accuracy["low"] < accuracy["value"] < accuracy["high"] <= 1
    assert list(arm["pass_at"]) == list(arm["majority_at"]) == ["1", "2", "4", "5"]
    for k in (1, 2, 4, 5):
        able = [row for row in graded if len(row) >= k]
        passed = [pass_at_k(len(row), sum(t["correct"] for t in row), k) for row in able]
        voted = [majority_at_k([t["answer"] for t in row], [t["correct"] for t in row], k) for row in able]
        for name, values in (("pass_at", passed), ("majority_at", voted)):
            estimate = arm[name][str(k)]
            assert estimate["value"] == pytest.approx(sum(values) / len(values))
            assert estimate["low"] <= estimate["value"] <= estimate["high"]
    assert f"{100 * accuracy['value']:.1f}%" in printed and "majority@k" in printed
    assert evaluate.main([*words[:3], str(tmp_path / "greedy"), *words[4:], "--quiet"]) == 0
    (greedy,) = json.loads((tmp_path / "greedy" / "evaluation.json").read_text())["arms"]
    assert greedy["arm"] == "greedy" and list(greedy["pass_at"]) == ["1"]
    assert evaluate.main([*words, "--layout", "responses"]) == 2
    assert evaluate.main(["--dataset", "nowhere.parquet", "--output_dir", str(tmp_path / "x")]) == 3


def test_a_run_without_gold_answers_says_that_nothing_was_graded(tmp_path: Path, local_ray: None) -> None:
    pq.write_table(pq.read_table(prepared(tmp_path)).select(["prompt"]), tmp_path / "no-gold.parquet")
    words = ["--dataset", str(tmp_path / "no-gold.parquet"), "--output_dir", str(tmp_path / "run")]
    assert evaluate.main([*words, "--backend", "simulated", "--quiet"]) == 0
    (arm,) = json.loads((tmp_path / "run" / "evaluation.json").read_text())["arms"]
    assert arm["accuracy"]["value"] is None and arm["pass_at"] == {} and arm["ungraded"] == {"no_gold": 3}


def prepared(folder: Path) -> Path:
    prepare_demo(3, 1, folder / "q.parquet")
    return folder / "q.parquet"


def test_the_merge_is_a_job_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["merge_lora", "--base", "demo", "--adapter", "/nowhere", "--output", "x"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("rollout_ray.jobs.merge_lora", run_name="__main__")
    assert ended.value.code == 2 and "/nowhere is no adapter" in capsys.readouterr().err
