"""Test folders as inputs: files that lack a column, partitions, splits, and runs that lie among the data."""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rollout_ray.config.schema import DataConfig
from rollout_ray.core.errors import DatasetError
from rollout_ray.data.question_set import QuestionSet, load_questions
from tests.finished_runs import finished

Rows = list[dict[str, Any]]


def load(dataset: object, **data: object) -> QuestionSet:
    return load_questions(dataset, DataConfig.model_validate(data))


def prompts(dataset: object, **data: object) -> list[Any]:
    return [question.fault or question.prompt for question in load(dataset, **data).questions()]


def write(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


FULL = {"prompt": "a", "gold_answer": "1", "uid": "x", "unit": "km"}


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_file_that_lacks_a_column_is_named(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / f"a.{kind}", [FULL])
    second = write(tmp_path / f"b.{kind}", [{"question": "b"}])
    if kind == "parquet":
        pq.write_table(pa.table({"other": pa.array([], pa.string())}), tmp_path / "empty.parquet")
    else:
        (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DatasetError, match=rf"^{second} of .* has no column 'prompt' for the prompt, which the other"):
        load(str(tmp_path))
    write(second, [{"prompt": "b"}])
    with pytest.raises(DatasetError, match=rf"^{second} of .* has no column 'uid' for the id"):
        load(str(tmp_path), id_key="uid")
    assert prompts(str(tmp_path)) == ["a", "b"]
    assert f"{second} of {tmp_path} has no column 'gold_answer': its rows are not graded" in caplog.text
    template = "{{ prompt }}{{ unit or '' }}"
    assert prompts(str(tmp_path), prompt_template=template) == ["akm", "b"]
    assert f"{second} of {tmp_path} has no column 'unit' of the prompt template" in caplog.text


def test_files_that_each_have_the_columns_say_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}.jsonl", [FULL, {"prompt": "without a gold"}])
    load(str(tmp_path), id_key=None)
    assert not caplog.text


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_the_folders_of_a_partition_are_columns(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "data_source=gsm8k" / "n=03" / f"0.{kind}", [{"prompt": "a"}])
    write(tmp_path / "data_source=a%20b" / "n=4" / f"0.{kind}", [{"prompt": "b", "n": "own"}])
    write(tmp_path / "data_source=__HIVE_DEFAULT_PARTITION__" / f"0.{kind}", [{"prompt": "c"}])
    for path in (str(tmp_path), f"{tmp_path}/", f"file://{tmp_path}", f"{tmp_path}/*=*/**/*.{kind}"):
        found = load(path)
        rows = [row for _, batch in found.batches() for row in batch.to_pylist()]
        assert sorted((row["prompt"], row["data_source"], row["n"]) for row in rows if row["n"]) == [
            ("a", "gsm8k", "03"),
            ("b", "a b", "own"),
        ]
        assert {row["data_source"] for row in rows if row["prompt"] == "c"} == {None}
    assert load(str(tmp_path)).ids == load(rows).ids, "ids are as without the columns"
    assert sorted(prompts(str(tmp_path), prompt_template="{{ prompt }} {{ n }}"))[:1] == ["a 03"]
    one = tmp_path / "data_source=gsm8k" / "n=03" / f"0.{kind}"
    assert load(str(one)).source.schema.names == ["prompt"]


def test_a_folder_of_several_splits_is_refused_with_their_sizes(tmp_path: Path) -> None:
    for name, count in (("train-00000-of-00002", 3), ("train-00001-of-00002", 4), ("test-00000-of-00001", 2)):
        write(tmp_path / "data" / f"{name}.parquet", [{"prompt": f"{name} {n}"} for n in range(count)])
    with pytest.raises(DatasetError) as refused:
        load(str(tmp_path))
    said = str(refused.value)
    assert "holds the splits test (1 file(s), 2 rows), train (2 file(s), 7 rows). Name the files of one, such as " in said
    named = said.split("'")[1::2]
    assert named == [f"{tmp_path}/data/train*", f"{tmp_path}/**/*.parquet"]
    assert [len(load(path)) for path in named] == [7, 9]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train/0.jsonl", "validation/0.jsonl"], True),
        (["gsm8k_train.jsonl", "gsm8k_test.jsonl"], True),
        (["Train.jsonl", "dev.jsonl"], True),
        (["train-a.jsonl", "training-b.jsonl"], False),
        (["trained.jsonl", "contest.jsonl", "test.jsonl"], False),
        (["split=train/0.jsonl", "split=test/0.jsonl"], False),
    ],
)
def test_which_names_tell_a_split(tmp_path: Path, names: list[str], splits: bool) -> None:
    folder = tmp_path / "train and test"
    for name in names:
        write(folder / name, [{"prompt": name}])
    if splits:
        with pytest.raises(DatasetError, match=r"holds the splits \w+ \(1 file\(s\)\), \w+ \(1 file\(s\)\)"):
            load(str(folder))
    else:
        assert len(load(str(folder))) == len(names)


def test_runs_among_the_data_are_no_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The default --output_dir lies in the working folder, which may be the folder of the data."""
    caplog.set_level(logging.INFO)
    write(tmp_path / "q.jsonl", [{"prompt": "a", "gold_answer": "1"}])
    with contextlib.chdir(tmp_path):
        first = load(".")
        for folder in (".", "rollouts", "old/runs/1"):
            run = finished(tmp_path / folder, str(tmp_path / "q.jsonl"))
            run.write_atomically("events.jsonl", b'{"event": "begun"}\n')
            run.write_atomically("logs/engine.jsonl", b"{}\n")
            (tmp_path / folder / "lease-1.json").write_text("{}")
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "run.json").write_text('{"kind": "of mine"}')
        write(tmp_path / "mine" / "more.jsonl", [{"prompt": "b"}])
        for path in (".", "./", "**/*.jsonl", f"file://{tmp_path}", str(tmp_path)):
            assert prompts(path) == ["b", "a"], path
            assert "file(s) of runs are not read" in caplog.text
            caplog.clear()
        (tmp_path / "mine" / "more.jsonl").unlink()
        assert load(".").fingerprint == first.fingerprint, "the same command goes on"
        assert prompts("*.jsonl") == ["a"]
