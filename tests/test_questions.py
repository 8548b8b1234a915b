"""Test inputs of every kind, question ids, and rows that cannot be asked."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rollout_ray.config.schema import DataConfig
from rollout_ray.core.errors import DatasetError
from rollout_ray.data.question_set import QuestionSet, load_questions
from rollout_ray.data.rows import JsonLine, from_rows, infer_schema, to_batch
from tests.conftest import ROOT, clean_environment, demo_rows

ROWS = demo_rows(20)


def ids(dataset: object, **data: object) -> tuple[str, ...]:
    return load_questions(dataset, DataConfig.model_validate(data)).ids


def files(tmp_path: Path) -> dict[str, str]:
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table, tmp_path / "all.parquet", row_group_size=3)
    (tmp_path / "folder").mkdir()
    pq.write_table(table.slice(0, 7), tmp_path / "folder" / "a.parquet")
    pq.write_table(table.slice(7), tmp_path / "folder" / "b.parquet")
    (tmp_path / "folder" / "_SUCCESS").touch()
    (tmp_path / "all.jsonl").write_text("\n\n".join(json.dumps(row) for row in ROWS))
    return {
        "file": str(tmp_path / "all.parquet"),
        "folder": str(tmp_path / "folder"),
        "glob": str(tmp_path / "folder" / "*.parquet"),
        "uri": f"file://{tmp_path}/all.parquet",
        "jsonl": str(tmp_path / "all.jsonl"),
    }


def test_every_kind_of_input_gives_the_same_questions(tmp_path: Path, local_ray: None) -> None:
    import ray.data

    inputs: dict[str, object] = {
        **files(tmp_path),
        "path": tmp_path / "all.parquet",
        "pandas": pd.DataFrame(ROWS),
        "arrow": pa.Table.from_pylist(ROWS),
        "batch": pa.RecordBatch.from_pylist(ROWS),
        "hugging face": datasets.Dataset.from_list(ROWS),
    }
    expected = load_questions(ROWS, DataConfig())
    for name, dataset in inputs.items():
        found = load_questions(dataset, DataConfig())
        assert found.ids == expected.ids and found.fingerprint == expected.fingerprint, name
        assert list(found.questions()) == list(expected.questions()), name
    ray.data.DataContext.get_current().enable_progress_bars = False
    found = load_questions(ray.data.from_items(ROWS), DataConfig())
    assert sorted(found.ids) == sorted(expected.ids) and found.fingerprint == expected.fingerprint


def test_a_filtered_hugging_face_data_set_keeps_its_filter() -> None:
    dataset = datasets.Dataset.from_list(ROWS).select([3, 1])
    assert ids(dataset) == (ids(ROWS)[3], ids(ROWS)[1])
    with pytest.raises(DatasetError, match="has splits; choose one: train"):
        ids(datasets.DatasetDict({"train": dataset}))


@pytest.mark.parametrize("limit", [1, 5, 20, 99])
def test_limit_takes_the_first_rows(tmp_path: Path, limit: int) -> None:
    for dataset in (ROWS, *files(tmp_path).values()):
        assert ids(dataset, limit=limit) == ids(ROWS)[:limit]


def write_parquet(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, compression="none", use_dictionary=False)


def write_jsonl(table: pa.Table, path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize("rewritten", ["in another order", "longer", "in place, of equal size"])
def test_an_input_that_changes_while_the_run_reads_it_is_refused(tmp_path: Path, rewritten: str, kind: str) -> None:
    """Rows are identified by their place: in a changed file they would get trajectories of other rows."""
    path = tmp_path / f"q.{kind}"
    write = {"parquet": write_parquet, "jsonl": write_jsonl}[kind]
    table = pa.Table.from_pylist([{**row, "question_id": f"q{n:02}"} for n, row in enumerate(ROWS)])
    write(table, path)
    questions = load_questions(str(path), DataConfig())
    assert [q.question_id for q in questions.questions()] == list(questions.ids)
    if rewritten == "in place, of equal size":
        content = path.read_bytes()
        path.write_bytes(content.replace(b"q01", b"q99"))
    else:
        other = table.take(list(range(19, -1, -1))) if rewritten == "in another order" else pa.concat_tables([table, table])
        write(other, tmp_path / "new")
        (tmp_path / "new").replace(path)
    with pytest.raises(DatasetError, match=rf"q\.{kind} was changed while the run read it"):
        list(questions.questions())


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**54), 2**54) | st.floats(allow_nan=False) | st.sampled_from(["", "a"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=4,
)


@given(rows=st.lists(st.dictionaries(st.sampled_from("xyz"), JSON_VALUES, max_size=3), max_size=7), size=st.integers(1, 4))
@example(rows=[{"x": {"a": False}}, {"x": {"a": 0.0}}], size=1)
@example(rows=[{"x": [False]}, {"x": [0.0]}], size=2)
@example(rows=[{"x": 0.0}, {"x": False}], size=1)
def test_lines_read_in_batches_are_the_table_of_all_lines(rows: list[dict[str, Any]], size: int) -> None:
    """A batch shows the types of its own rows only; the others may need wider ones."""
    lines = [JsonLine(f"line {number}", 1, row) for number, row in enumerate(rows)]
    batches = [lines[begin : begin + size] for begin in range(0, len(lines), size)]
    try:
        expected = from_rows(rows, str)
    except DatasetError:
        with pytest.raises(DatasetError, match=r"^line [0-9]"):
            pa.Table.from_batches([to_batch(batch, infer_schema(batches)) for batch in batches])
    else:
        schema = infer_schema(batches)
        assert schema == expected.schema
        assert pa.Table.from_batches([to_batch(batch, schema) for batch in batches], schema).equals(expected)


MEASURE = """
import resource, sys
from rollout_ray.config.schema import DataConfig
from rollout_ray.data.question_set import load_questions
load_questions(sys.argv[1], DataConfig())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
questions = load_questions(sys.argv[2], DataConfig())
count = sum(1 for _ in questions.questions())
print(count, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.usefixtures("long_computation")
def test_a_large_jsonl_file_is_read_in_bounded_memory(tmp_path: Path) -> None:
    """150 MB take 180 MiB as bytes alone; the last line decides the type of a column, so all must be read twice."""
    (tmp_path / "small.jsonl").write_text(json.dumps({"prompt": "a"}) + "\n")
    text = "word " * 2000
    with open(tmp_path / "large.jsonl", "w") as stream:
        for number in range(15_000):
            stream.write(json.dumps({"prompt": f"{number} {text}", "n": 0.5 if number == 14_999 else number}) + "\n")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "small.jsonl"), str(tmp_path / "large.jsonl")],
        env=clean_environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    count, mebibytes = map(int, done.stdout.split())
    assert count == 15_000 and mebibytes < 100


def test_a_link_to_its_own_folder_repeats_no_row(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "part").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for name in ("data/z.jsonl", "data/part/b.jsonl", "elsewhere/c.jsonl"):
        (tmp_path / name).write_text(json.dumps({"prompt": name}) + "\n")
    (folder / "loop").symlink_to(folder)
    (folder / "a-loop").symlink_to(".")
    (folder / "part" / "up").symlink_to("..")
    (folder / "again.jsonl").symlink_to("z.jsonl")
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    (folder / "gone").symlink_to("nowhere")
    expected = ["elsewhere/c.jsonl", "data/part/b.jsonl", "data/z.jsonl"]
    for path in (str(folder), f"{folder}/", f"file://{folder}"):
        assert [q.prompt for q in load_questions(path, DataConfig()).questions()] == expected
    with contextlib.chdir(folder):
        assert [q.prompt for q in load_questions(".", DataConfig()).questions()] == expected
    prompts = [q.prompt for q in load_questions(f"{folder}/*.jsonl", DataConfig()).questions()]
    assert prompts == ["data/z.jsonl"]


def test_what_programs_keep_beside_the_data_is_no_data(tmp_path: Path) -> None:
    folder = tmp_path / ".data" / "set"
    hidden = (".ipynb_checkpoints", "_temporary/0", "_delta_log", ".Trash-0/files")
    for place in ("", "deeper", *hidden):
        (folder / place).mkdir(parents=True, exist_ok=True)
        (folder / place / "q.jsonl").write_text(json.dumps({"prompt": f"of '{place}'"}))
    (folder / ".q.jsonl").write_text(json.dumps({"prompt": "hidden"}))
    for path in (str(folder), f"{folder}/", f"file://{folder}"):
        assert [q.prompt for q in load_questions(path, DataConfig()).questions()] == ["of 'deeper'", "of ''"]


def test_what_is_not_read_of_a_folder_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"prompt": ["b"]}), tmp_path / "b.PARQUET")
    (tmp_path / "README.md").touch()
    assert len(ids(str(tmp_path))) == 2 and "not read" not in caplog.text
    (tmp_path / "c.jsonl.gz").touch()
    assert len(ids(str(tmp_path))) == 2
    assert "1 file(s) are not read, such as" in caplog.text and "c.jsonl.gz" in caplog.text


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64(), "dictionary"])
def test_a_gold_number_is_what_its_own_precision_says(kind: Any) -> None:
    numbers = pa.array([0.1, 2.5, 18.0, None, float("nan")]).cast(pa.float32() if kind == "dictionary" else kind)
    column = numbers.dictionary_encode() if kind == "dictionary" else numbers
    table = pa.table({"prompt": list("abcde"), "gold_answer": column})
    golds = [q.gold_answer for q in load_questions(table, DataConfig()).questions()]
    assert golds == ["0.1", "2.5", "18.0", None, None]


def test_ids_follow_content_and_not_position() -> None:
    assert set(ids(ROWS[::-1])) == set(ids(ROWS))
    assert load_questions(ROWS[::-1], DataConfig()).fingerprint == load_questions(ROWS, DataConfig()).fingerprint
    with_more = [{**row, "source": "x"} for row in ROWS]
    assert ids(with_more) == ids(ROWS)
    other_gold = [{**row, "gold_answer": "0"} for row in ROWS]
    assert not set(ids(other_gold)) & set(ids(ROWS))


@given(st.lists(st.sampled_from("abc"), max_size=12))
def test_ids_are_unique_whatever_is_doubled(prompts: list[str]) -> None:
    found = ids([{"prompt": p} for p in prompts]) if prompts else ()
    assert len(set(found)) == len(prompts)


def test_an_id_column_is_used_and_checked() -> None:
    assert ids([{"prompt": "a", "question_id": 7}, {"prompt": "b", "question_id": 8}]) == ("7", "8")
    assert ids([{"prompt": "a", "uid": "x"}], id_key="uid") == ("x",)
    with pytest.raises(DatasetError, match=r"rows 0 and 2 \(from 0\) have the same question_id '1'"):
        ids([{"prompt": p, "question_id": i} for p, i in (("a", 1), ("b", 2), ("c", 1))])
    with pytest.raises(DatasetError, match=r"row 1 \(from 0\): column 'question_id' has no id"):
        ids([{"prompt": "a", "question_id": 1}, {"prompt": "b", "question_id": None}])


def test_columns_of_any_name() -> None:
    rows = [{"q": "what?", "a": 72}, {"q": "why?", "a": None}]
    found = load_questions(rows, DataConfig(prompt_key="q", gold_key="a"))
    assert [(q.prompt, q.gold_answer) for q in found.questions()] == [("what?", "72"), ("why?", None)]


def test_without_a_gold_column_nothing_is_graded() -> None:
    found = load_questions([{"prompt": "a"}], DataConfig())
    assert found.gold_key is None and next(found.questions()).gold_answer is None


def test_chat_prompts() -> None:
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    (question,) = load_questions([{"prompt": chat}], DataConfig()).questions()
    assert question.prompt == tuple(chat) and question.fault is None


@pytest.mark.parametrize(
    ("prompt", "fault"),
    [
        (None, "the prompt is null"),
        (" \n", "the prompt is empty"),
        ([], "the prompt is a conversation without messages"),
        ([{"role": "wizard", "content": "x"}], "message 0 of the prompt has the role 'wizard'"),
        ([{"role": "user", "content": None}], "message 0 of the prompt has no text as its content"),
    ],
)
def test_a_row_that_cannot_be_asked_has_a_fault(prompt: object, fault: str) -> None:
    good = [{"role": "user", "content": "x"}] if isinstance(prompt, list) else "x"
    found = list(load_questions([{"prompt": prompt}, {"prompt": good}], DataConfig()).questions())
    assert [q.fault for q in found] == [fault, None]


def test_bytes_that_are_no_text_are_a_fault_and_a_bad_gold() -> None:
    broken = pa.array([b"\xff\xfe", b"fine"], pa.binary()).view(pa.string())
    table = pa.table({"prompt": broken, "gold_answer": broken})
    first, second = load_questions(table, DataConfig()).questions()
    assert first.fault == "the prompt is not UTF-8 text" and first.gold_answer == ""
    assert second.prompt == "fine" and second.gold_answer == "fine"


def bad_inputs(tmp_path: Path) -> list[tuple[object, str]]:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "line.jsonl").write_text('{"prompt": "a"}\n\n{"prompt": \n')
    (tmp_path / "type.jsonl").write_text('{"prompt": "a", "n": 1}\n\n{"prompt": "b", "n": "x"}\n')
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "mixed").mkdir()
    pq.write_table(pa.table({"prompt": ["a"], "n": [1]}), tmp_path / "mixed" / "a.parquet")
    pq.write_table(pa.table({"prompt": ["a"], "n": [[1]]}), tmp_path / "mixed" / "b.parquet")
    return [
        (str(tmp_path / "nothing.parquet"), "nothing.parquet does not exist or holds no files"),
        (str(tmp_path / "broken.parquet"), "broken.parquet cannot be read as parquet"),
        (str(tmp_path / "line.jsonl"), r"line.jsonl, line 3: not JSON"),
        (str(tmp_path / "type.jsonl"), r"type.jsonl, line 3, column 'n'"),
        (str(tmp_path / "list.jsonl"), r"list.jsonl, line 1: list where an object is needed"),
        (str(tmp_path / "mixed"), "have columns that do not go together"),
        ([{"question": "a"}], "has no column 'prompt' for the prompt; it has: question. Name it: --prompt_key"),
        ([{"prompt": 3}], "column 'prompt' holds int64"),
        (
            [{"prompt": "a", "gold_answer": [1]}],
            "column 'gold_answer' holds list<.*>; a gold answer is one string or number",
        ),
        ([{"prompt": "a", "s_end": 1}], "has a column 's_end', a name of the output; rename it"),
        ([{"prompt": "a"}, 3], r"row 1 \(from 0\): int where a dict is needed"),
        ([{"prompt": "a", "n": 1}, {"prompt": "a", "n": "x"}], r"row 1 \(from 0\), column 'n'"),
        ([], "has no column 'prompt' for the prompt; it is empty"),
        (3, "int is no kind of input"),
    ]


def test_what_cannot_be_read_says_where(tmp_path: Path) -> None:
    for dataset, message in bad_inputs(tmp_path):
        with pytest.raises(DatasetError, match=message):
            ids(dataset)


def test_a_named_column_must_exist() -> None:
    with pytest.raises(DatasetError, match="has no column 'gold'; it has: prompt"):
        ids([{"prompt": "a"}], gold_key="gold")


def test_files_of_different_integer_widths_go_together(tmp_path: Path) -> None:
    for name, kind in (("a", pa.int32()), ("b", pa.int64())):
        pq.write_table(pa.table({"prompt": [name], "n": pa.array([1], kind)}), tmp_path / f"{name}.parquet")
    found = load_questions(str(tmp_path), DataConfig())
    assert found.source.schema.field("n").type == pa.int64()
    assert sum(batch.num_rows for _, batch in found.batches()) == 2


def test_questions_already_done_are_left_out() -> None:
    found: QuestionSet = load_questions(ROWS, DataConfig())
    rest = list(found.questions(done=set(found.ids[:15])))
    assert tuple(q.question_id for q in rest) == found.ids[15:]


def test_long_ones_first_then_the_rest_in_passes_of_input_order() -> None:
    questions = load_questions(ROWS, DataConfig())
    lengths = {question_id: float(number % 4) for number, question_id in enumerate(questions.ids)}
    del lengths[questions.ids[2]]
    ordered = [q.question_id for q in questions.long_first(lengths).questions({questions.ids[3]})]
    places = [questions.ids.index(question_id) for question_id in ordered]
    # 19 lengths in four passes; the unknown one (2) comes in the first, and 3 is done
    assert places == [2, 7, 11, 15, 19, 1, 6, 10, 14, 18, 0, 5, 9, 13, 17, 4, 8, 12, 16]
    assert [q.question_id for q in questions.long_first({}).questions()] == list(questions.ids)
