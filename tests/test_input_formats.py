"""Test the formats of input files: each gives the same questions, and what cannot be read says what to do."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from rollout_ray.config.schema import DataConfig
from rollout_ray.core.errors import DatasetError
from rollout_ray.data.question_set import QuestionSet, check_faults, load_questions

ROWS = [
    {"prompt": "What is 2 + 2?\nThink, then answer: \"4\", or 'five'", "gold_answer": "4"},
    {"prompt": "Zwölf, in figures?", "gold_answer": "012.0"},
    {"prompt": "Who knows?", "gold_answer": None},
]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def load(dataset: object, **data: object) -> QuestionSet:
    return load_questions(dataset, DataConfig.model_validate(data))


def write_csv(path: Path) -> None:
    with open(path, "w", newline="") as stream:
        writer = csv.DictWriter(stream, ["prompt", "gold_answer"])
        writer.writeheader()
        writer.writerows(ROWS)


def zstd(content: bytes) -> bytes:
    packed: pa.Buffer = pa.Codec("zstd").compress(content)
    return packed.to_pybytes()


def write_all(folder: Path) -> list[str]:
    """Write the rows in every format, and return the paths."""
    (folder / "q.jsonl.gz").write_bytes(gzip.compress(LINES[:100]) + gzip.compress(LINES[100:]))
    (folder / "q.ndjson.bz2").write_bytes(bz2.compress(LINES))
    (folder / "lines.json").write_bytes(LINES)
    (folder / "array.json").write_text(f"\ufeff {json.dumps(ROWS, indent=2, ensure_ascii=False)}\n")
    (folder / "array.json.gz").write_bytes(gzip.compress(json.dumps(ROWS).encode()))
    write_csv(folder / "q.CSV")
    (folder / "q.csv.gz").write_bytes(gzip.compress((folder / "q.CSV").read_bytes()))
    feather.write_feather(pa.Table.from_pylist(ROWS), folder / "feather.arrow")
    datasets.Dataset.from_list(ROWS).save_to_disk(folder / "saved", num_shards=2)
    with open(folder / "q.jsonl.zst", "wb") as stream, pa.CompressedOutputStream(stream, "zstd") as packed:
        packed.write(LINES)
    return [str(path) for path in folder.iterdir()]


def test_every_format_gives_the_same_questions(tmp_path: Path) -> None:
    expected = load(ROWS)
    paths = write_all(tmp_path)
    assert len(paths) == 10
    for path in paths:
        found = load(path)
        assert found.ids == expected.ids and list(found.questions()) == list(expected.questions()), path
        assert load(path, limit=2).ids == expected.ids[:2], path


def test_a_folder_of_compressed_files_is_read(tmp_path: Path) -> None:
    for name, row in zip("ab", ROWS, strict=False):
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
    assert load(str(tmp_path)).ids == load(ROWS[:2]).ids


def test_a_saved_data_set_with_splits_names_them(tmp_path: Path) -> None:
    saved = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": saved, "test": saved}).save_to_disk(tmp_path / "saved")
    with pytest.raises(DatasetError, match=r"holds the splits test \(1 file\(s\)\), train .*such as '(.*/saved/train)'"):
        load(str(tmp_path / "saved"))
    assert load(str(tmp_path / "saved" / "train")).ids == load(ROWS).ids


BAD: dict[str, tuple[bytes, str]] = {
    "half.jsonl.gz": (gzip.compress(LINES)[:60], r"half\.jsonl\.gz cannot be read: "),
    "plain.jsonl.gz": (LINES, r"plain\.jsonl\.gz cannot be read: "),
    "row.json": (b'[{"prompt": "a"}, 3]', r"row\.json, row 1 \(from 0\): int where an object is needed"),
    "open.json": (b'[{"prompt": "a"},', r"open\.json, row 0 \(from 0\): not JSON \(the array does not end\)"),
    "comma.json": (b'[{"prompt": "a"} {}]', r"row 0 \(from 0\): not JSON \('\{' where a comma is needed\)"),
    "more.json": (b'[{"prompt": "a"}] x', r"not JSON \(text follows the array\)"),
    "twice.json": (b'[{"a": 1, "a": 2}]', r"row 0 \(from 0\): not JSON \(the key 'a' stands twice"),
    "deep.json": (b'[{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]", "nested too deeply"),
    "ragged.csv": (b"prompt,gold_answer\na,1\nb,2,3\n", r"ragged\.csv cannot be read.*Expected 2 columns, got 3"),
    "empty.csv": (b"", r"empty\.csv cannot be read as csv: Empty CSV file"),
    "latin.csv": ("prompt\nZwölf\n".encode("latin-1"), r"latin\.csv cannot be read.*UTF8"),
    "no.arrow": (b"no", r"no\.arrow cannot be read as arrow"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=message) as refused:
        load(str(tmp_path / name))
    assert "\n" not in str(refused.value)


def test_files_of_several_formats_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_bytes(LINES)
    with pytest.raises(DatasetError, match=r"names files of several formats: .*a\.parquet and .*b\.jsonl"):
        load(str(tmp_path))
    assert len(load(f"{tmp_path}/*.parquet")) == 3


ANSWERED = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


def test_a_set_without_a_row_that_can_be_asked_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    """Conversations for SFT end with the answer. Each row would become an error, and the run end with 0."""
    rows = [{"prompt": ANSWERED}, {"prompt": ANSWERED}, {"prompt": []}]
    with pytest.raises(DatasetError) as refused:
        check_faults(load(rows))
    assert str(refused.value) == (
        "the given list: no row can be asked: the prompt ends with the assistant's message, so that nothing is left to "
        "answer (in 2 of 3 rows). Remove the last message of each conversation, or name another column: --prompt_key"
    )
    with pytest.raises(DatasetError, match=r"no row can be asked: the prompt is null\. Correct the prompts, or name"):
        check_faults(load(pa.table({"prompt": pa.nulls(2)})))
    check_faults(load([*rows, {"prompt": ANSWERED[:1]}]))
    assert "the given list: 3 of 4 rows cannot be asked, 2 of them because the prompt ends with the as" in caplog.text
    caplog.clear()
    check_faults(load(ROWS))
    check_faults(load(pa.table({"prompt": pa.array([], pa.string())})))
    assert not caplog.text


def test_a_gold_inside_a_struct_says_what_to_do() -> None:
    rows = [{"prompt": "a", "reward_model": {"style": "rule", "ground_truth": "4"}}]
    make = r"Make the field a column of its own, and name that: --gold_key$"
    with pytest.raises(DatasetError, match=rf"no column 'reward_model.ground_truth', and no field.*{make}"):
        load(rows, gold_key="reward_model.ground_truth")
    with pytest.raises(DatasetError, match=rf"column 'reward_model' holds struct<.*; a gold answer is one string.*{make}"):
        load(rows, gold_key="reward_model")


class Frame:
    """A frame of another library, which gives its columns by Arrow's capsules and has text as views."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self._table.__arrow_c_stream__(requested_schema)


def test_a_frame_of_another_library_is_an_input() -> None:
    view = pa.string_view()
    chat = pa.list_(pa.struct([("role", view), ("content", view)]))
    talk = [[{"role": "user", "content": "hi"}], [{"role": "user", "content": "ho"}]]
    table = pa.table({"prompt": pa.array(talk, chat), "gold_answer": pa.array(["1", "2"], view)})
    found = load(Frame(table))
    assert found.ids == load(table.to_pylist()).ids
    rows = [row for _, batch in found.batches() for row in batch.to_pylist()]
    assert rows == table.to_pylist()
    with pytest.raises(DatasetError, match="int is no kind of input; give a path, a pandas or polars DataFrame"):
        load(3)
