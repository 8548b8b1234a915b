"""Graders by name and by source: what each calls correct, and what is refused before a run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rollout_ray.config.loading import load_config
from rollout_ray.config.schema import RunConfig
from rollout_ray.config.scoring_schema import ScoringConfig
from rollout_ray.core.errors import ConfigError, DatasetError
from rollout_ray.core.records import Completion, Question
from rollout_ray.data.question_set import load_questions
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


@pytest.mark.parametrize(
    "text",
    [
        "Answer: A, B",
        "Answer: (A) and (B)",
        "Answer: A) or B)",
        "Answer: A or B",
        "A, B",
        "The answer is (A) or (C).",
        "Answer: A: no, B",
        "\\boxed{A, B, C, D}",
        "Answer: option A or option B",
        "Answer: option a or b",
        "A; no, it is B.",
    ],
)
def test_several_letters_are_no_answer(text: str) -> None:
    grade = grade_text("choice", Question("q", "p", "A"), text, 5)
    assert (grade.status, grade.answer) == ("no_answer", None)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Answer: B. A dog", "B"),
        ("(A)", "A"),
        ("A. Paris", "A"),
        ("Answer: A, A", "A"),
        ("D. Vitamin C", "D"),
        ("A, not B", "A"),
        ("A. Rome, Italy", "A"),
        ("C. Both A and B", "C"),
        ("option b", "B"),
        ("**(B)** Rome, Paris", "B"),
    ],
)
def test_one_letter_with_its_text_is_a_letter(text: str, letter: str) -> None:
    assert grade_text("choice", Question("q", "p", "A"), text, 5).answer == letter


SPECIES, NUMBERS, LETTERS = ["D. melanogaster", "C. elegans"], ["2", "3", "4", "5"], ["A", "C", "B and C", "K"]


@pytest.mark.parametrize(
    ("choices", "gold", "is_integer", "text", "status", "answer"),
    [
        (SPECIES, "B", False, "Answer: C. elegans", "correct", "B"),
        (SPECIES, "C. elegans", False, "Answer: B", "correct", "B"),
        (NUMBERS, "3", False, "Answer: D", "bad_gold", "D"),
        (NUMBERS, "3", True, "Answer: D", "correct", "D"),
        (NUMBERS, "5", False, "Answer: D", "correct", "D"),
        (NUMBERS, "0", False, "Answer: A", "correct", "A"),
        (["0", "1", "2"], "1", False, "Answer: B", "correct", "B"),
        (LETTERS, "C", False, "Answer: C", "bad_gold", "C"),
        (LETTERS, "D", False, "Answer: K", "correct", "D"),
        (LETTERS, "D", False, "Answer: C", "no_answer", None),
        (LETTERS, "K", False, "Answer: C. B and C", "incorrect", "C"),
    ],
)
def test_a_choice_has_one_reading_or_none(
    choices: list[str], gold: str, is_integer: bool, text: str, status: str, answer: str | None
) -> None:
    question = Question("q", "p", gold, row={"choices": choices}, gold_is_integer=is_integer)
    grade = grade_text("choice", question, text, 5)
    assert (grade.status, grade.answer) == (status, answer)


@pytest.mark.parametrize(("gold", "is_integer"), [(1, True), ("1", False), (None, False)])
def test_a_question_knows_whether_its_gold_is_an_integer(gold: object, is_integer: bool) -> None:
    questions = load_questions([{"prompt": "p", "gold_answer": gold}], RunConfig().data)
    assert [q.gold_is_integer for q in questions.questions()] == [is_integer]


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
