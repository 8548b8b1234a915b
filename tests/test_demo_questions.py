"""Test the generated problems and their files."""

from __future__ import annotations

import itertools
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rollout_ray.core.errors import DatasetError
from rollout_ray.data.demo_questions import OPERATORS, generate_problems
from rollout_ray.data.prepare import prepare_demo, prepare_gsm8k
from tests.conftest import Command


def test_every_step_is_right_and_leads_to_the_answer() -> None:
    for problem in itertools.islice(generate_problems(3, "train"), 2000):
        for step in problem.steps:
            assert OPERATORS[step.operator](step.left, step.right) == step.result >= 0
            if step.operator == "/":
                assert step.right * step.result == step.left
        assert problem.answer == str(problem.steps[-1].result)
        assert len(problem.steps) >= 2


def test_the_sequence_depends_on_seed_and_split_alone() -> None:
    def first(seed: int, split: str) -> list[str]:
        return [p.question for p in itertools.islice(generate_problems(seed, split), 50)]  # type: ignore[arg-type]

    assert first(1, "test") == first(1, "test")
    assert first(1, "test") != first(2, "test")


def test_no_test_problem_is_a_training_problem() -> None:
    train = {p.question for p in itertools.islice(generate_problems(1, "train"), 20_000)}
    test = {p.question for p in itertools.islice(generate_problems(1, "test"), 2_000)}
    assert not train & test


def test_demo_questions_as_parquet(tmp_path: Path) -> None:
    assert prepare_demo(30, 1, tmp_path / "new" / "q.parquet") == 30
    table = pq.read_table(tmp_path / "new" / "q.parquet")
    assert table.column_names == ["prompt", "gold_answer"] and table.num_rows == 30


def test_gsm8k_as_parquet(tmp_path: Path, gsm8k: Path) -> None:
    assert prepare_gsm8k(gsm8k, tmp_path / "q.parquet") == 7473
    table = pq.read_table(tmp_path / "q.parquet")
    assert table.column_names == ["prompt", "gold_answer", "solution"]
    golds = table.column("gold_answer").to_pylist()
    assert golds[:3] == ["72", "10", "5"]
    assert all(float(gold) is not None for gold in golds)
    assert not any("####" in solution for solution in table.column("solution").to_pylist())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not JSON"),
        ('{"question": "q"}', "a GSM8K row has"),
        ('{"question": "q", "answer": "no mark"}', "a GSM8K row has"),
        ("[1]", "list where an object is needed"),
    ],
)
def test_a_row_of_another_form_is_named(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "x.jsonl").write_text('{"question": "q", "answer": "s #### 1"}\n\n' + line)
    with pytest.raises(DatasetError, match=f"x.jsonl, line 3: {words}"):
        prepare_gsm8k(tmp_path / "x.jsonl", tmp_path / "x.parquet")
    assert not (tmp_path / "x.parquet").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["gsm8k", "nowhere.jsonl", "q.parquet"], 3, "nowhere.jsonl"),
        (["what"], 2, "invalid choice: 'what'"),
        (["demo", "many", "q.parquet"], 2, "many"),
    ],
)
def test_what_cannot_be_prepared_is_named(
    rollout: Command, tmp_path: Path, words: list[str], code: int, message: str
) -> None:
    done = rollout("prepare", *words, cwd=tmp_path)
    assert done.returncode == code and message in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
