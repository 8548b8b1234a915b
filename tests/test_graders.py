"""Graders by name and by source: what each calls correct, and what is refused before a run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rollout_ray.config.loading import load_config
from rollout_ray.config.scoring_schema import ScoringConfig
from rollout_ray.core.errors import ConfigError, DatasetError
from rollout_ray.core.records import Completion, Question
from rollout_ray.results.merged_file import MergedFile
from rollout_ray.results.verify import verify
from rollout_ray.scoring.grader import Grader
from rollout_ray.scoring.graders import Graders, check_sources, grade_text, grading_columns, unreadable_golds
from tests.conftest import ROOT
from tests.finished_runs import finished

CITIES = {"choices": ["Rome", "Paris", "New York"]}


@pytest.mark.parametrize(
    ("grader", "gold", "text", "status", "answer"),
    [
        ("choice", "B", "It is in France.\nAnswer: B", "correct", "B"),
        ("choice", "B", "The answer is (B).", "correct", "B"),
        ("choice", "B", "So \\boxed{C}", "incorrect", "C"),
        ("choice", "B", "B. Paris", "correct", "B"),
        ("choice", "B", "Answer: Paris", "correct", "B"),
        ("choice", "1", "Answer: B", "correct", "B"),
        ("choice", "new york", "Answer: **C**", "correct", "C"),
        ("choice", "B", "A city cannot be told from this.", "no_answer", None),
        ("choice", "Berlin", "Answer: B", "bad_gold", "B"),
        ("exact", "Paris", "I think of France.\nAnswer: Paris.", "correct", "Paris."),
        ("exact", "Paris", "  Paris\n", "correct", "Paris"),
        ("exact", "Paris", "Answer: paris", "incorrect", "paris"),
        ("exact", "Paris", "", "no_answer", None),
        ("regex", r"\\b(Paris|Lutetia)\\b", "<think>Rome?</think>It was called Lutetia.", "correct", "Lutetia"),
        ("regex", r"Rome", "<think>Rome?</think>Paris", "incorrect", "Paris"),
        ("regex", "(", "Paris", "bad_gold", "Paris"),
        ("regex", r"(a|aa)+$", "a" * 60 + "b", "timeout", "a" * 60 + "b"),
    ],
)
def test_a_grader_by_name(grader: str, gold: str, text: str, status: str, answer: str | None) -> None:
    grade = grade_text(grader, Question("q", "p", gold.replace("\\\\", "\\"), row=CITIES), text, 0.3)
    assert (grade.status, grade.answer) == (status, answer)


def test_a_source_chooses_the_grader_and_maths_is_the_rest() -> None:
    scoring = ScoringConfig(graders={"mmlu": "choice", "names": "exact"}, grader="math")
    questions = [
        Question("a", "p", "0.5", row={"data_source": "gsm8k"}),
        Question("b", "p", "B", row={"data_source": "mmlu"}),
        Question("c", "p", "Ann", row={"data_source": "names"}),
        Question("d", "p", None, row={"data_source": "names"}),
    ]
    refused = Completion(1, "", 0, 0, "error", "engine-0", "refused")
    with Grader() as grader:
        said = ("1/2", "B", "Bob", "Bob")
        answers = [Completion(0, f"Answer: {text}", 1, 1, "stop", "engine-0") for text in said]
        whole = [(question, [answer, refused]) for question, answer in zip(questions, answers, strict=True)]
        grades = Graders(scoring, grader).grade(whole)
    assert [[one.status for one in some] for some in grades] == [
        ["correct", "error"], ["correct", "error"], ["incorrect", "error"], ["no_gold", "error"],
    ]  # fmt: skip
    assert grading_columns(scoring, ["prompt", "data_source", "choices"]) == ("data_source", "choices")
    assert grading_columns(ScoringConfig(), ["data_source", "choices"]) == ()


def test_the_example_of_graders_is_a_config() -> None:
    scoring = load_config(file=ROOT / "jobs" / "examples" / "graders.yaml").scoring
    assert scoring.graders["mmlu"] == "choice" and scoring.source_key == "data_source"


def test_what_a_grader_cannot_use_is_refused_or_said_before_the_run() -> None:
    scoring = ScoringConfig(graders={"mmlu": "choice"})
    questions = [
        Question("a", "p", "E5", row={"data_source": "mmlu"}),
        Question("b", "p", "4", row={"data_source": "gsm8k"}),
    ]
    assert unreadable_golds(scoring, questions[:1]) == ["E5"]
    with pytest.raises(DatasetError, match="no grader for 1 sources of the column data_source, such as gsm8k; add them"):
        check_sources(scoring, questions, ["data_source"])
    with pytest.raises(DatasetError, match="the data have no column data_source, by which"):
        check_sources(scoring, questions, ["prompt"])
    for flags in (["--grader", "code"], ["--graders", "mbpp=judge"]):
        with pytest.raises(ConfigError, match=re.escape("must be 'math', 'choice', 'exact' or 'regex'")):
            load_config(flags)


def test_a_run_of_two_sources_verifies_and_keeps_its_rows(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p1", "gold_answer": "7", "data_source": "sums"},
        {"prompt": "p2", "gold_answer": "#### 7", "data_source": "words"},
    ]
    run = finished(tmp_path / "run", rows, scoring={"graders": {"sums": "math", "words": "exact"}})
    assert verify(run.uri).lines()[-1:] and not verify(run.uri).disagreements
    with MergedFile(run.uri) as merged:
        assert merged.description.config.scoring.graders == {"sums": "math", "words": "exact"}
