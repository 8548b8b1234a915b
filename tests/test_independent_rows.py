"""Test that a question's prompt and id depend on its own row alone, whatever the other rows hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rollout_ray.config.schema import DataConfig
from rollout_ray.core.errors import DatasetError
from rollout_ray.core.records import Question
from rollout_ray.data.question_set import load_questions
from rollout_ray.export.formats import export
from rollout_ray.results.verify import verify
from tests.finished_runs import finished


def call(arguments: dict[str, Any], **message: Any) -> list[dict[str, Any]]:
    calls = [{"type": "function", "function": {"name": "f", "arguments": arguments}}]
    asked: dict[str, Any] = {"role": "user", "content": "What is the weather?"}
    return [asked, {"role": "assistant", "content": "", "tool_calls": calls, **message}, {"role": "tool", "content": "5"}]


OSLO = call({"city": "Oslo", "days": 3})
OTHERS = [call({"expr": "1 + 1", "days": 2.5}, name="Anna"), [{"role": "user", "content": "hi", "weight": 1}]]


def questions(dataset: Any, **data: Any) -> list[Question]:
    return list(load_questions(dataset, DataConfig.model_validate(data)).questions())


def as_jsonl(rows: list[dict[str, Any]], folder: Path) -> str:
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "q.jsonl")


def as_parquet(rows: list[dict[str, Any]], folder: Path) -> str:
    pq.write_table(pa.Table.from_pylist(rows), folder / "q.parquet")
    return str(folder / "q.parquet")


@pytest.mark.parametrize("write", [lambda rows, folder: rows, as_jsonl, as_parquet], ids=["list", "jsonl", "parquet"])
def test_a_conversation_is_the_same_beside_others(tmp_path: Path, write: Any) -> None:
    """Arrow unites the structs of a column: another row's key arrives as null, and 3 beside 2.5 as 3.0."""
    rows = [{"prompt": prompt, "gold_answer": "5"} for prompt in (OSLO, *OTHERS)]
    (alone,) = questions([rows[0]])
    assert alone.prompt == tuple(OSLO)
    together = write(rows, tmp_path)
    found = questions(together)
    assert [list(q.prompt) for q in found] == [OSLO, *OTHERS]
    assert repr(found[0].prompt) == repr(alone.prompt), "3 is not 3.0"
    assert found[0] == alone and questions(together, limit=1) == [alone]


NAMES = st.sampled_from(["city", "days", "expr"])
VALUES = st.recursive(
    st.none() | st.integers(-9, 9) | st.sampled_from([0.5, 2.0, 1e300]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=4,
)


@given(st.lists(st.dictionaries(NAMES, VALUES, min_size=1, max_size=2), min_size=2, max_size=4))
def test_arguments_of_any_shape_do_not_reach_other_rows(arguments: list[dict[str, Any]]) -> None:
    rows = [{"prompt": call(one)} for one in arguments]
    try:
        together = questions(rows)
        alone = [questions([row])[0] for row in rows]
    except DatasetError:  # no column type holds them all, or parquet has no such type
        assume(False)
    for one, other in zip(together, alone, strict=True):
        assert one.prompt == other.prompt
        assert one.question_id.partition("-")[0] == other.question_id


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ prompt }} {{ meta | tojson }}", 'a {"hint": "h"}'),
        ("{{ prompt }}{% if meta.unit %} in {{ meta.unit }}{% endif %}", "a"),
        ("{{ prompt }}{% if meta['unit'] is none %}!{% endif %}", "a!"),
        ("{{ prompt }} {{ meta | length }}", "a 1"),
        ("{{ meta.unit }}", "the prompt template fails on this row: a value that it prints is null"),
    ],
)
def test_a_template_sees_the_keys_of_its_own_row(template: str, expected: str) -> None:
    rows = [{"prompt": "a", "meta": {"hint": "h"}}, {"prompt": "b", "meta": {"unit": "km"}}]
    alone, together = (questions(some, prompt_template=template)[0] for some in (rows[:1], rows))
    assert alone == together and (alone.fault or alone.prompt) == expected


def test_ids_of_plain_rows_stay_what_they_were() -> None:
    """These ids stand in the run directories of users: another id would draw the question again."""
    rows = [
        {"prompt": "What is 2 + 2?", "gold_answer": "4"},
        {"prompt": [{"role": "user", "content": "hi", "name": None}], "gold_answer": None},
        {"prompt": [{"role": "wizard", "content": "hi", "name": "Anna"}], "gold_answer": "1"},
    ]
    assert [questions([row])[0].question_id for row in rows] == IDS


def test_ids_of_mixed_numbers_stay_what_they_were(tmp_path: Path) -> None:
    """A column has one type, so 3 is 3.0 beside 2.5 (docs/inputs.md). Another reading changes the ids of such files."""
    rows = [{"prompt": "What is 1 + 2?", "gold_answer": 3}, {"prompt": "What is 5 / 2?", "gold_answer": 2.5}]
    for dataset in (rows, as_jsonl(rows, tmp_path)):
        found = questions(dataset)
        assert [q.gold_answer for q in found] == ["3.0", "2.5"]
        assert [q.question_id for q in found] == MIXED_IDS


MIXED_IDS = ["218e7a074875a930", "65ecc322c6efb2e2"]
IDS = ["ad6cdcce475cf374", "14a8d129d209278b", "7001ae398e63e5cb"]


def test_a_merged_file_gives_the_same_ids_again_and_its_export_adds_no_key(tmp_path: Path) -> None:
    rows = [{"prompt": prompt, "gold_answer": "5", "meta": {f"key{n}": n}} for n, prompt in enumerate((OSLO, *OTHERS))]
    run = finished(tmp_path / "run", rows)
    assert verify(run.uri).agrees
    export([run.uri], tmp_path / "out.jsonl", "jsonl")
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert records[2]["question"] == OTHERS[1]
    assert "expr" not in json.dumps(records[0]["question"])
    export([run.uri], tmp_path / "flat.jsonl", "responses")
    flat = [json.loads(line) for line in (tmp_path / "flat.jsonl").read_text().splitlines()]
    assert [one["meta"] for one in flat] == [row["meta"] for row in rows]
