"""Test the merge: order, layouts and completeness, for parts in any order."""

from __future__ import annotations

import io
import json
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_ray.actors.scorer import part_table
from rollout_ray.config.schema import DataConfig, Layout
from rollout_ray.core.errors import IncompleteError, LedgerError
from rollout_ray.core.records import ScoredQuestion, Trajectory, has_rewards
from rollout_ray.data.question_set import QuestionSet, load_questions
from rollout_ray.results import layouts, part_rows
from rollout_ray.results import merge as merge_module
from rollout_ray.results.layouts import output_schema
from rollout_ray.results.merge import merge, write_merged
from rollout_ray.storage.run_directory import RunDirectory
from rollout_ray.telemetry.summary import Summary, summary_lines, summary_table


def trajectory(question_id: str, sample: int, **fields: object) -> Trajectory:
    values: dict[str, object] = {
        "arm": "ab"[sample % 2],
        "sample": sample // 2,
        "seed": sample,
        "temperature": 0.5,
        "top_p": 1.0,
        "full_text": f"{question_id} text {sample}",
        "reasoning": "r",
        "answer": str(sample),
        "correct": sample == 0,
        "score_status": "correct" if sample == 0 else "incorrect",
        "reward": float(sample),
        "num_prompt_tokens": 3,
        "num_tokens": 10 + sample,
        "finish_reason": "stop",
        "error": None,
        "engine": "engine-0",
        "policy_version": 3,
    }
    return Trajectory(**(values | fields))  # type: ignore[arg-type]


def scored(question_id: str, samples: int) -> ScoredQuestion:
    return ScoredQuestion(question_id, tuple(trajectory(question_id, n) for n in range(samples)), 0.1, 0.2, 0.3, 0.4)


def input_rows(count: int) -> list[dict[str, object]]:
    return [
        {"prompt": f"q{i}", "gold_answer": str(i), "answer": f"a{i}", "nested": {"x": [i, None]}, "b": bytes([i % 256])}
        for i in range(count)
    ]


def committed(
    folder: str | Path, rows: list[dict[str, object]], samples: int, parts: int, seed: int
) -> tuple[RunDirectory, QuestionSet]:
    """Return a run directory with the questions of these rows, spread over parts in a random order."""
    questions = load_questions(rows, DataConfig())
    run = RunDirectory(f"{folder}/run")
    run.open({}, {"config": {"data": {"prompt_key": "prompt", "gold_key": "gold_answer"}}})
    ids = list(questions.ids)
    random.Random(seed).shuffle(ids)
    for begin in range(parts):
        if share := ids[begin::parts]:
            run.write_part(part_table([scored(i, samples) for i in share]))
    return run, questions


def merged(run: RunDirectory, questions: QuestionSet, samples: int, layout: Layout = "questions") -> pa.Table:
    merge(run, questions, layout, samples, {"schema_version": 1})
    return pq.read_table(run.path("merged.parquet"))


@settings(max_examples=25)
@given(st.integers(0, 700), st.integers(1, 4), st.integers(1, 9), st.integers(0, 99))
def test_rows_come_out_once_in_the_order_of_the_input(count: int, samples: int, parts: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = input_rows(count) or [{"prompt": "x"}]
        run, questions = committed(folder, rows, samples, parts, seed)
        table = merged(run, questions, samples)
        assert table.column("question_id").to_pylist() == list(questions.ids)
        assert table.select(["prompt"]).to_pylist() == [{"prompt": row["prompt"]} for row in rows]
        for question_id, trajectories in zip(questions.ids, table.column("trajectories").to_pylist(), strict=True):
            assert [t["full_text"] for t in trajectories] == [f"{question_id} text {n}" for n in range(samples)]


def test_input_columns_are_carried_through_untouched(tmp_path: Path) -> None:
    rows = input_rows(5)
    run, questions = committed(tmp_path, rows, 2, 2, 0)
    table = merged(run, questions, 2)
    assert table.select(list(rows[0])).to_pylist() == rows
    assert table.column_names == [*rows[0], "question_id", "trajectories", "s_end", "s_path", "s_cf", "s_wm"]


@pytest.mark.parametrize("layout", ["questions", "trajectories"])
def test_named_rewards_of_some_parts_make_a_column_and_none_make_none(tmp_path: Path, layout: Layout) -> None:
    rows = [{**row, "question_id": f"q{n}", "rewards": n} for n, row in enumerate(input_rows(4))]
    run, questions = committed(tmp_path, rows, 2, 1, 0)
    table = merged(run, questions, 2, layout)
    assert table.column("rewards").type == pa.int64() and not has_rewards(table.schema)
    for name in run.parts():
        run.remove(name)
    named = [replace(t, rewards={"a": 1.0, "b": 0.5}) for t in scored("q1", 2).trajectories]
    run.write_part(part_table([replace(scored("q1", 2), trajectories=tuple(named))]))
    run.write_part(part_table([scored(f"q{n}", 2) for n in (3, 0, 2)]))
    table = merged(run, questions, 2, layout)
    if layout == "trajectories":
        assert table.column("input_rewards").to_pylist() == [0, 0, 1, 1, 2, 2, 3, 3]
        given = table.column("rewards").to_pylist()
    else:
        assert has_rewards(table.schema)
        given = [t["rewards"] for row in table.column("trajectories").to_pylist() for t in row]
    pairs = [("a", 1.0), ("b", 0.5)]
    assert given == [None, None, pairs, pairs, None, None, None, None]


def test_the_flat_layout(tmp_path: Path) -> None:
    run, questions = committed(tmp_path, input_rows(5), 4, 2, 0)
    table = merged(run, questions, 4, "trajectories")
    assert table.num_rows == 20
    assert table.column("prompt").to_pylist() == [f"q{i}" for i in range(5) for _ in range(4)]
    assert table.column("input_answer").to_pylist() == [f"a{i}" for i in range(5) for _ in range(4)]
    assert table.column("arm").to_pylist() == ["a", "b", "a", "b"] * 5
    assert table.column("answer").to_pylist() == ["0", "1", "2", "3"] * 5


def test_large_columns_of_the_input_are_repeated_some_trajectories_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All repetitions together could exceed the memory, or the limit of Arrow."""
    rows: list[dict[str, object]] = [{"prompt": f"q{i}", "image": bytes([i]) * 10_000} for i in range(6)]
    run, questions = committed(tmp_path, rows, 40, 2, 0)
    whole = merged(run, questions, 40, "trajectories")
    monkeypatch.setattr(layouts, "REPEATED_BYTES", 300_000)
    monkeypatch.setattr(merge_module, "ROW_GROUP_BYTES", 1)  # each table becomes a row group
    assert merged(run, questions, 40, "trajectories").equals(whole)
    file = pq.ParquetFile(run.path("merged.parquet"))
    groups = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    assert sum(groups) == 240 and max(groups) <= 30


def test_the_responses_layout_is_the_input_and_one_column(tmp_path: Path) -> None:
    rows = input_rows(300)
    run, questions = committed(tmp_path, rows, 3, 4, 0)
    table = merged(run, questions, 3, "responses")
    assert table.column_names == [*rows[0], "responses"]
    assert table.column("responses")[7].as_py() == [f"{questions.ids[7]} text {n}" for n in range(3)]


@pytest.mark.parametrize("layout", ["questions", "trajectories", "responses"])
def test_no_rows_give_an_empty_file_with_the_right_columns(tmp_path: Path, layout: Layout) -> None:
    run = RunDirectory(f"{tmp_path}/run")
    run.open({}, {})
    questions = load_questions(pa.table({"prompt": pa.array([], pa.string())}), DataConfig())
    table = merged(run, questions, 8, layout)
    assert table.num_rows == 0
    assert table.schema.names == output_schema(questions.source.schema, layout).names


def test_a_missing_question_is_named_and_no_file_is_written(tmp_path: Path) -> None:
    run, _ = committed(tmp_path, input_rows(5), 2, 1, 0)
    more = load_questions(input_rows(6), DataConfig())
    with pytest.raises(IncompleteError, match=f"1 of 6 questions are not in the parts of .*: {more.ids[5]}"):
        merged(run, more, 2)
    assert not Path(run.path("merged.parquet")).exists()


def test_a_question_with_too_few_trajectories_is_named(tmp_path: Path) -> None:
    run, questions = committed(tmp_path, input_rows(3), 2, 1, 0)
    with pytest.raises(IncompleteError, match="has 2 trajectories where 3 are due"):
        merged(run, questions, 3)
    assert not Path(run.path("merged.parquet")).exists()


def test_a_question_that_two_parts_hold_comes_out_once(tmp_path: Path) -> None:
    run, questions = committed(tmp_path, input_rows(4), 2, 1, 0)
    run.write_part(part_table([scored(questions.ids[2], 2)]))
    result = merge(run, questions, "questions", 2, {})
    assert (result.rows, result.duplicates) == (4, 1)


def test_copies_that_differ_are_counted_and_the_first_committed_one_counts(tmp_path: Path) -> None:
    run, questions = committed(tmp_path, input_rows(300), 2, 3, 0)
    agreeing, differing = questions.ids[7], questions.ids[290]
    run.write_part(part_table([scored(agreeing, 2)]))
    other = tuple(trajectory(differing, n, full_text="another driver's") for n in range(2))
    run.write_part(part_table([ScoredQuestion(differing, other, 0.1, 0.2, 0.3, 0.4)]))
    result = merge(run, questions, "questions", 2, {})
    assert (result.rows, result.duplicates, result.disagreeing) == (300, 2, 1)
    texts = pq.read_table(run.path("merged.parquet")).column("trajectories")[290].as_py()
    assert [t["full_text"] for t in texts] == [f"{differing} text {n}" for n in range(2)]


def flip(path: str, place: float) -> None:
    """Flip one bit of a file, at a share of its length."""
    content = bytearray(Path(path).read_bytes())
    content[int(len(content) * place)] ^= 4
    Path(path).write_bytes(content)


def test_a_bit_that_flips_before_the_merge_is_noticed(tmp_path: Path) -> None:
    run, questions = committed(tmp_path, input_rows(300), 2, 3, 0)
    flip(run.path(run.parts()[1]), 0.4)
    with pytest.raises(LedgerError, match=rf"{run.parts()[1]} is torn or altered.* Run the same command again"):
        merge(run, questions, "questions", 2, {})
    assert not Path(run.path("merged.parquet")).exists()


def test_a_bit_that_flips_during_the_merge_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_rows, "WINDOW_BYTES", 10_000)
    run, questions = committed(tmp_path, input_rows(300), 2, 1, 0)
    with pytest.raises(LedgerError, match="is torn or altered"):
        merge(run, questions, "questions", 2, {}, lambda *_: flip(run.path(run.parts()[0]), 0.4))
    assert not Path(run.path("merged.parquet")).exists()


def test_parts_are_read_about_once_when_they_follow_the_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With parts nearly in input order, as two scorers write them, many windows do not read a part many times."""
    questions = load_questions(input_rows(4000), DataConfig())
    run = RunDirectory(f"{tmp_path}/run")
    run.open({}, {})
    order = sorted(range(4000), key=lambda i: i + random.Random(i).uniform(0, 60))
    tables = [part_table([scored(questions.ids[i], 2) for i in order[begin : begin + 50]]) for begin in range(0, 4000, 50)]
    for table in tables:
        run.write_part(table)
    monkeypatch.setattr(part_rows, "WINDOW_BYTES", 10 * tables[0].nbytes)
    reads: list[str] = []
    monkeypatch.setattr(run, "read_part", lambda name: (reads.append(name), RunDirectory(run.uri).read_part(name))[1])
    assert merge(run, questions, "questions", 2, {}).rows == 4000
    assert len(reads) <= 80 + 80 * 1.4  # once for the ids, and about once for the rows


def test_the_metadata_says_what_made_it(tmp_path: Path) -> None:
    run, questions = committed(tmp_path, input_rows(1), 1, 1, 0)
    merge(run, questions, "questions", 1, {"schema_version": 1, "model": "demo"})
    metadata = pq.read_schema(run.path("merged.parquet")).metadata
    assert json.loads(metadata[b"rollout_ray"]) == {"schema_version": 1, "model": "demo", "layout": "questions"}


@pytest.mark.usefixtures("long_computation")
def test_windows_of_any_size_give_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory does not grow with the run: a window of one question gives the same file."""
    run, questions = committed(tmp_path, input_rows(600), 2, 5, 3)
    expected = merged(run, questions, 2)
    monkeypatch.setattr(part_rows, "WINDOW_BYTES", 1)
    monkeypatch.setattr(merge_module, "ROW_GROUP_ROWS", 50)
    assert merged(run, questions, 2).equals(expected)


def test_the_time_for_small_tables_grows_with_their_number_only() -> None:
    """An input with 3,000 row groups of one row took 53 s to merge, in place of 4 s."""
    table = pa.table({f"column {n}": pa.array(["text"] * 1000) for n in range(20)})

    def seconds(rows: int) -> float:
        began = time.process_time()
        assert write_merged(io.BytesIO(), table.schema, {}, (table.slice(n, 1) for n in range(rows))) == rows
        return time.process_time() - began

    seconds(1)
    assert seconds(1000) < 10 * seconds(200)


def test_the_summary_counts_what_passes(tmp_path: Path) -> None:
    run, questions = committed(tmp_path, input_rows(300), 4, 3, 0)
    summary = Summary()
    merge(run, questions, "questions", 4, {}, lambda rows, given: summary.add(rows))
    assert (summary.questions, summary.trajectories, summary.tokens) == (300, 1200, 300 * (10 + 11 + 12 + 13))
    assert summary.score_status == {"correct": 300, "incorrect": 900} and summary.finish_reason == {"stop": 1200}
    assert (summary.arms["a"].accuracy, summary.arms["b"].accuracy) == (0.5, 0.0)
    assert (summary.arms["a"].mean_reward, summary.arms["b"].mean_reward) == (1.0, 2.0)
    assert summary.null_rewards == 0
    double = Summary()
    double.combine(summary)
    double.combine(summary)
    assert double.trajectories == 2400 and double.arms["a"].accuracy == 0.5
    assert json.loads(json.dumps(summary.to_dict()))["arms"]["b"]["mean_reward"] == 2.0


def test_the_summary_tells_nulls_from_zeros() -> None:
    rows = [trajectory("q", n, correct=None, reward=None, score_status="timeout") for n in range(2)]
    summary = Summary()
    summary.add(part_table([ScoredQuestion("q", tuple(rows), 0, 0, 0, 0)]))
    assert summary.arms["a"].accuracy is None and summary.arms["a"].mean_reward is None
    assert summary.null_rewards == 2
    assert "2 trajectories have no reward: the grade is unknown (timeout 2)" in summary_lines(summary)
    assert summary_table(summary).row_count == 2


def test_the_summary_counts_the_gold_answers_that_cannot_be_read() -> None:
    statuses = {"a": ("correct", "incorrect"), "b": ("bad_gold", "bad_gold"), "c": ("bad_gold", "error")}
    scored = [
        ScoredQuestion(name, tuple(trajectory(name, n, score_status=s) for n, s in enumerate(found)), 0, 0, 0, 0)
        for name, found in statuses.items()
    ]
    summary = Summary()
    summary.add(part_table(scored).slice(0, 2), lambda row: ["18", "$"][row])
    summary.add(part_table(scored).slice(2), lambda row: ["7 or 8"][row])
    assert summary.bad_golds == 2
    assert "2 of 3 gold answers cannot be read, such as '$'" in summary_lines(summary)
    together = Summary()
    together.combine(summary)
    together.combine(summary)
    assert (together.bad_golds, together.bad_gold) == (4, "'$'")


def test_a_custom_reward_that_returned_none_is_named_as_the_reason() -> None:
    rows = [trajectory("q", n, correct=True, reward=None, score_status="correct") for n in range(2)]
    summary = Summary()
    summary.add(part_table([ScoredQuestion("q", tuple(rows), 0, 0, 0, 0)]))
    assert "2 trajectories have no reward: the reward function returned None" in summary_lines(summary)
