"""Test odd columns, files and types of whole inputs: kept unchanged, unified, or refused before anything starts.

test_poison.py has the tests of single rows, and prints the tables of both files.
"""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rollout_ray import collect
from rollout_ray.cli.main import main
from rollout_ray.core.errors import DatasetError
from tests.conftest import simulated_greedy

BYTES = b"\xff\xfe not UTF-8"
DAY, NOON = datetime.date(2024, 2, 29), datetime.datetime(2024, 2, 29, 12, 0, 0, 1)


def text_of(values: list[bytes | None], kind: pa.DataType | None = None) -> pa.Array:
    """Return a string column with exactly these bytes, UTF-8 or not."""
    return pa.array(values, pa.binary()).view(kind or pa.string())


# Columns of 2 rows that the output keeps, and the type in the output if it differs from the input.

COLUMNS: dict[str, tuple[pa.Array, pa.DataType | None]] = {
    "int8": (pa.array([1, None], pa.int8()), None),
    "uint64": (pa.array([1, 2**64 - 1], pa.uint64()), None),
    "float16": (pa.array([1.5, None], pa.float16()), None),
    "float32": (pa.array([1.1, float("inf")], pa.float32()), None),
    "decimal": (pa.array([decimal.Decimal("1.10"), None]), None),
    "decimal256": (pa.array([decimal.Decimal("1.10"), None], pa.decimal256(60, 2)), None),
    "bool": (pa.array([True, None]), None),
    "bytes": (pa.array([b"\xff", b""]), None),
    "fixed bytes": (pa.array([b"ab", b"cd"], pa.binary(2)), None),
    "large_string": (pa.array(["a", None], pa.large_string()), None),
    "string not UTF-8": (text_of([BYTES, b"fine"]), None),
    "string_view": (pa.array(["a", None]).cast(pa.string_view()), pa.string()),
    "date": (pa.array([DAY, None]), None),
    "date64": (pa.array([DAY, None], pa.date64()), pa.date32()),
    "timestamp s": (pa.array([datetime.datetime(2024, 1, 1), None], pa.timestamp("s")), pa.timestamp("ms")),
    "timestamp ns, zone": (pa.array([NOON, None], pa.timestamp("ns", "Europe/Berlin")), None),
    "timestamp us, offset": (pa.array([NOON, None], pa.timestamp("us", "+05:30")), None),
    "time64": (pa.array([1, 2], pa.time64("ns")), None),
    "duration": (pa.array([1, 2], pa.duration("s")), None),
    "list": (pa.array([[1, None], None]), None),
    "list of list": (pa.array([[[1], []], [None]]), None),
    "fixed-size list": (pa.array([[1, 2], None], pa.list_(pa.int32(), 2)), None),
    "struct": (pa.array([{"a": 1, "b": [{"c": None}]}, None]), None),
    "list of struct": (pa.array([[{"a": 1}], [None]]), None),
    "map": (pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int32())), None),
    "null": (pa.nulls(2), None),
    "dictionary of text": (pa.array(["a", None]).dictionary_encode(), None),
    "dictionary of ints": (pa.array([5, 6]).dictionary_encode(), pa.int64()),
    "uuid": (pa.array([uuid.UUID(int=1), None]), None),
    "json": (pa.ExtensionArray.from_storage(pa.json_(), pa.array(["{}", None])), None),
    "a\nname\x1b[31m": (pa.array([1, 2]), None),
    "": (pa.array([1, 2]), None),
    "arm": (pa.array(["x", "y"]), None),
    "full_text": (pa.array(["x", "y"]), None),
}


def one_column(array: Any, name: str = "x") -> pa.Table:
    return pa.table([["a"] * len(array), array], names=["prompt", name])


def rows_with(*values: Any) -> list[dict[str, Any]]:
    return [{"prompt": "a", "x": value} for value in values]


# Inputs in memory that are refused before anything starts.

LOCAL, ZONED = datetime.datetime(2024, 1, 1), datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
DIFFERENT = "the values of this column are of different types, and"
REFUSED: list[tuple[str, Callable[[], Any], str]] = [
    ("0 rows in a list", lambda: [], "has no column 'prompt' for the prompt; it is empty"),
    ("prompt a number", lambda: [{"prompt": 3}], "column 'prompt' holds int64; a prompt is a string, or a list of"),
    ("prompt bytes", lambda: [{"prompt": b"a"}], "column 'prompt' holds binary; a prompt is a string"),
    ("gold a list", lambda: [{"prompt": "a", "gold_answer": [1]}], "a gold answer is one string or number"),
    ("gold a date", lambda: [{"prompt": "a", "gold_answer": DAY}], "holds date32[day]; a gold answer is one string"),
    ("a column of the output's", lambda: [{"prompt": "a", "s_wm": 1}], "has a column 's_wm', a name of the output"),
    (
        "names that would meet in the flat layout",
        lambda: [{"prompt": "a", "arm": 1, "input_arm": 2}],
        "has the columns 'arm' and 'input_arm'; rename one",
    ),
    ("one name twice", lambda: pa.table([["a"], [1], [2]], names=["prompt", "x", "x"]), "'x' more than once; rename one"),
    ("lone surrogate", lambda: rows_with("a", "\ud800"), "row 1 (from 0), column 'x': 'utf-8' codec can't encode"),
    ("lone surrogate in pandas", lambda: pd.DataFrame({"prompt": ["\ud800"]}, dtype=object), "'utf-8' codec can't encode"),
    ("lone surrogate in a name", lambda: [{"prompt": "a", "\ud800": 1}], "the key '\\ud800' cannot name a column"),
    ("a name that is no text", lambda: [{"prompt": "a", 1: 2}], "row 0 (from 0): the key 1 cannot name a column"),
    (
        "a name that is not UTF-8",
        lambda: pa.table({"prompt": ["a"], b"\xff": [1]}),
        "the name of column 1 (from 0) is not UTF-8 text; rename it",
    ),
    ("a number beyond 64 bits", lambda: rows_with(1, 10**30), "row 1 (from 0), column 'x': "),
    ("a number beyond 64 bits in pandas", lambda: pd.DataFrame(rows_with(10**30)), "too large"),
    ("ints too large for the floats beside them", lambda: rows_with(2**60 + 1, 0.5), "row 1 (from 0), column 'x': "),
    ("text and numbers in one column", lambda: rows_with(1, "x"), "row 1 (from 0), column 'x': "),
    ("text and numbers in pandas", lambda: pd.DataFrame(rows_with(1, "x")), "column x with type object"),
    ("text and bytes in one column", lambda: rows_with("a", b"\xff"), f"row 0 (from 0), column 'x': {DIFFERENT} binary"),
    ("text and bytes in pandas", lambda: pd.DataFrame(rows_with("a", b"b")), f"column 'x': {DIFFERENT} binary"),
    ("dates and times", lambda: rows_with(DAY, NOON), f"row 1 (from 0), column 'x': {DIFFERENT} date32[day]"),
    ("dates and times in pandas", lambda: pd.DataFrame(rows_with(DAY, NOON)), f"column 'x': {DIFFERENT} date32[day]"),
    ("times with and without a zone", lambda: rows_with(ZONED, LOCAL), f"column 'x': {DIFFERENT} timestamp"),
    ("two-dimensional arrays", lambda: rows_with(np.zeros((2, 2))), "Can only convert 1-dimensional array values"),
    ("any Python object", lambda: rows_with(object()), "did not recognize Python value type"),
    ("one pandas column twice", lambda: pd.DataFrame([["a", 1, 2]], columns=["prompt", "x", "x"]), "Duplicate column"),
    ("struct without fields", lambda: rows_with({}), "column 'x' holds struct<>, which the output cannot hold"),
    (
        "calendar intervals",
        lambda: one_column(pa.array([pa.MonthDayNano([1, 2, 3])])),
        "column 'x' holds month_day_nano_interval, which the output cannot hold",
    ),
    (
        "dictionary that is not UTF-8",
        lambda: one_column(pa.DictionaryArray.from_arrays(pa.array([0]), text_of([BYTES]))),
        "cannot be carried into the output: ",
    ),
    ("no input at all", lambda: 3, "int is no kind of input; give a path, a pandas or polars DataFrame"),
]

# JSONL files: case, bytes, and the expected message or rows.

JSONL: list[tuple[str, bytes, str | list[dict[str, Any]]]] = [
    ("bad line", b'{"prompt": "a"}\n{"prompt": \n', "line 2: not JSON ("),
    ("blank lines, CRLF", b'\r\n{"prompt": "a"}\r\n\r\n{"prompt": "b"}\r\n', [{"prompt": "a"}, {"prompt": "b"}]),
    ("byte order mark", b'\xef\xbb\xbf{"prompt": "a"}\n', [{"prompt": "a"}]),
    ("line separator in a text", '{"prompt": "a\u2028b"}\n'.encode(), [{"prompt": "a\u2028b"}]),
    ("UTF-16", '{"prompt": "a"}\n'.encode("utf-16"), "not JSON ("),
    ("bytes that are not UTF-8", b'{"prompt": "\xff"}\n', "line 1: not JSON ('utf-8' codec can't decode"),
    ("a number as prompt", b'{"prompt": "a"}\n{"prompt": 3}\n', "line 2, column 'prompt': "),
    ("null line", b'{"prompt": "a"}\nnull\n', "line 2: NoneType where an object is needed"),
    ("100,000 levels", b'{"prompt": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    ("500 levels", b'{"prompt": "a", "x": ' + b"[" * 500 + b"]" * 500 + b"}", "which the output cannot hold"),
    ("one key twice", b'{"prompt": "a", "prompt": "b"}\n', "line 1: not JSON (the key 'prompt' stands twice"),
    ("int beyond 64 bits", b'{"prompt": "a", "x": 123456789012345678901234567890}\n', "line 1, column 'x': "),
    ("int of 5,000 digits", b'{"prompt": "a", "x": ' + b"1" * 5000 + b"}\n", "line 1: not JSON (Exceeds the limit"),
    ("lone surrogate", b'{"prompt": "\\ud800"}\n', "line 1, column 'prompt': 'utf-8' codec can't encode"),
    ("empty file", b"", "has no column 'prompt' for the prompt; it is empty"),
]

# Folders of two files that differ in the type of x, and the expected type or message.

MISMATCH = "have columns that do not go together"
AB = pa.struct([("a", pa.int64()), ("b", pa.int64())])
FOLDERS: list[tuple[str, pa.Array, pa.Array, pa.DataType | str]] = [
    ("int32, int64", pa.array([1], pa.int32()), pa.array([2**40]), pa.int64()),
    ("string, large_string", pa.array(["a"]), pa.array(["b"], pa.large_string()), pa.large_string()),
    ("null, string", pa.nulls(1), pa.array(["b"]), pa.string()),
    ("int, float", pa.array([3]), pa.array([0.5]), pa.float64()),
    ("int that no float holds, float", pa.array([2**53 + 1]), pa.array([0.5]), "cannot be read: Integer value"),
    (
        "milli- and microseconds",
        pa.array([NOON], pa.timestamp("us")),
        pa.array([0], pa.timestamp("ms")),
        pa.timestamp("us"),
    ),
    ("decimals", pa.array([decimal.Decimal("1.1")]), pa.array([decimal.Decimal("9.25")]), pa.decimal128(3, 2)),
    (
        "struct fields in another order",
        pa.array([{"a": 1, "b": 2}]),
        pa.array([{"b": 2, "a": 1}], pa.struct([("b", pa.int64()), ("a", pa.int64())])),
        AB,
    ),
    ("decimal, float", pa.array([decimal.Decimal("1.1")]), pa.array([0.5]), MISMATCH),
    ("string, bytes", pa.array(["a"]), pa.array([b"\xff"]), MISMATCH),
    ("string, int", pa.array(["a"]), pa.array([1]), MISMATCH),
    ("string, dictionary", pa.array(["a"]), pa.array(["a"]).dictionary_encode(), MISMATCH),
    (
        "two zones",
        pa.array([NOON], pa.timestamp("us", "UTC")),
        pa.array([NOON], pa.timestamp("us", "Asia/Tokyo")),
        MISMATCH,
    ),
]


def merged(path: Path) -> pa.Table:
    return pq.ParquetFile(path).read()


@pytest.mark.parametrize("layout", ["questions", "trajectories", "responses"])
@pytest.mark.parametrize("from_file", [False, True], ids=["memory", "parquet"])
def test_columns_come_out_as_they_went_in(
    tmp_path: Path, local_ray: None, caplog: pytest.LogCaptureFixture, layout: str, from_file: bool
) -> None:
    arrays = [array for array, _ in COLUMNS.values()]
    table = pa.table([["a", "b"], *arrays], names=["prompt", *COLUMNS])
    dataset: Any = table
    if from_file:
        pq.write_table(table, tmp_path / "in.parquet")
        dataset = str(tmp_path / "in.parquet")
    cfg = simulated_greedy(tmp_path / "run", layout=layout)
    found = collect(dataset, cfg).table()
    assert found.num_rows == 2
    taken = {"arm": "input_arm", "full_text": "input_full_text"} if layout == "trajectories" else {}
    for name, (array, kind) in COLUMNS.items():
        column = found.column(taken.get(name, name))
        assert column.type == (kind or array.type), name
        assert column.combine_chunks().equals(array.cast(kind) if kind else array), name
        if kind and not from_file:
            assert f"column '{name}' holds {array.type}, which parquet gives back as {kind}" in caplog.text


@pytest.mark.parametrize(("name", "make", "sentence"), REFUSED, ids=[name for name, *_ in REFUSED])
def test_inputs_refused_before_the_start(tmp_path: Path, name: str, make: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(DatasetError) as raised:
        collect(make(), simulated_greedy(tmp_path / "run"))
    assert sentence in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "content", "expected"), JSONL, ids=[name for name, *_ in JSONL])
def test_jsonl(
    tmp_path: Path, local_ray: None, capsys: pytest.CaptureFixture[str], name: str, content: bytes, expected: Any
) -> None:
    (tmp_path / "in.jsonl").write_bytes(content)
    words = [
        "--dataset",
        str(tmp_path / "in.jsonl"),
        "--output_dir",
        str(tmp_path / "run"),
        "--backend",
        "simulated",
        "--quiet",
    ]
    code = main([*words, "--sim_tokens_per_second", "1000000", "--replicas", "1", "--arm_set", "greedy"])
    errors = capsys.readouterr().err
    if isinstance(expected, str):
        assert code == 3 and expected in errors and errors.count("\n") == 1 and not (tmp_path / "run").exists()
    else:
        assert code == 0
        assert merged(tmp_path / "run" / "merged.parquet").select(list(expected[0])).to_pylist() == expected


def folder_of(path: Path, cases: list[tuple[str, pa.Array, pa.Array, Any]]) -> str:
    """Write two files that differ in column types. Each column has the name of its case."""
    path.mkdir()
    for file in (1, 2):
        columns: dict[str, Any] = {case[0]: case[file] for case in cases}
        pq.write_table(pa.table({"prompt": ["q"], **columns}), path / f"{file}.parquet")
    return str(path)


def test_files_that_differ_and_go_together(tmp_path: Path, local_ray: None, caplog: pytest.LogCaptureFixture) -> None:
    cases = [case for case in FOLDERS if not isinstance(case[3], str)]
    found = collect(folder_of(tmp_path / "in", cases), simulated_greedy(tmp_path / "run")).table()
    for name, first, second, kind in cases:
        assert found.column(name).type == kind and f"differ in column '{name}'; {kind} holds them all" in caplog.text
        assert found.column(name).to_pylist() == [*first.to_pylist(), *second.to_pylist()], name


@pytest.mark.parametrize("case", [case for case in FOLDERS if isinstance(case[3], str)], ids=lambda case: case[0])
def test_files_that_do_not_go_together(tmp_path: Path, case: tuple[str, pa.Array, pa.Array, str]) -> None:
    with pytest.raises(DatasetError) as raised:
        collect(folder_of(tmp_path / "in", [case]), simulated_greedy(tmp_path / "run"))
    assert case[3] in str(raised.value) and not (tmp_path / "run").exists()


def test_one_row_and_files_without_rows(tmp_path: Path, local_ray: None) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "in" / "a.parquet")
    pq.write_table(pa.table({"prompt": ["q"]}), tmp_path / "in" / "b.parquet")
    assert collect(str(tmp_path / "in"), simulated_greedy(tmp_path / "run")).table().num_rows == 1
    with pytest.raises(DatasetError, match="does not exist or holds no files"):
        collect(str(tmp_path / "in" / "*.csv"), simulated_greedy(tmp_path / "none"))
    pq.write_table(pa.table({"prompt": ["bracket"]}), tmp_path / "a[1].parquet")
    assert collect(str(tmp_path / "a[1].parquet"), simulated_greedy(tmp_path / "bracket")).table().num_rows == 1


def test_pandas_and_hugging_face(tmp_path: Path, local_ray: None) -> None:
    chats = [np.array([{"role": "user", "content": "hi"}], dtype=object)] * 2
    frame = pd.DataFrame(
        {
            "prompt": chats,
            "ints": pd.array([1, None], "Int64"),
            "kind": pd.Categorical(["a", "b"]),
            "v": [np.arange(2)] * 2,
        },
        index=pd.Index(["one", "two"], name="question_id"),
    )
    found = collect(frame, simulated_greedy(tmp_path / "pandas")).table()
    assert found.column("question_id").to_pylist() == ["one", "two"], "a named index is data"
    assert found.select(["prompt", "ints", "kind", "v"]).to_pylist() == [
        {"prompt": list(chats[0]), "ints": n, "kind": k, "v": [0, 1]} for n, k in ((1, "a"), (None, "b"))
    ]
    features = datasets.Features({"prompt": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    dataset = datasets.Dataset.from_dict({"prompt": ["q"], "label": [1]}, features=features)
    assert collect(dataset, simulated_greedy(tmp_path / "hf")).table().column("label").to_pylist() == [1]
