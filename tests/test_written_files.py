"""Test that written files are whole and never replace the input, the run or a device; and that reads are batched."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rollout_ray import collect
from rollout_ray.core.errors import ConfigError, DatasetError, LedgerError
from rollout_ray.data.prepare import prepare_demo, prepare_gsm8k
from rollout_ray.export.formats import export
from rollout_ray.storage import files as files_module
from rollout_ray.storage.files import row_batches, write_whole
from rollout_ray.storage.run_directory import RunDirectory
from tests.conftest import ROOT, clean_environment, simulated_greedy


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file"
    write_whole(target, lambda stream: stream.write(b"old") and None)

    def fails(stream: Any) -> None:
        stream.write(b"half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_whole(target, fails)
    assert [p.name for p in target.parent.iterdir()] == ["file"] and target.read_bytes() == b"old"
    script = (
        "import os, signal, sys\nfrom rollout_ray.storage.files import write_whole\n"
        "def dies(stream):\n    stream.write(b'half'); stream.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_whole(sys.argv[1], dies)"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, str(target)], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False
    )
    assert killed.returncode == -signal.SIGKILL and target.read_bytes() == b"old"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> RunDirectory:
    """A merged run with invalid UTF-8 and NaN."""
    broken = pa.array([b"\xff", b"What is 2 + 2?"], pa.binary()).view(pa.string())
    table = pa.table({"prompt": broken, "gold_answer": [float("nan"), 4.0]})
    return collect(table, simulated_greedy(tmp_path_factory.mktemp("finished") / "run", sampling={"n_samples": 50})).run


def test_an_export_is_json_whatever_the_rows_hold(tmp_path: Path, finished: RunDirectory) -> None:
    assert export([finished.uri], tmp_path / "out.jsonl").rows == 2
    rows = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["question"], row["gold_answer"]) for row in rows] == [(None, None), ("What is 2 + 2?", 4.0)]


def test_an_export_spares_its_own_run_and_devices(tmp_path: Path, finished: RunDirectory) -> None:
    before = Path(finished.path("merged.parquet")).read_bytes()
    (tmp_path / "link.parquet").symlink_to(finished.path("merged.parquet"))
    for target in (*map(finished.path, ("merged.parquet", "run.json", "parts/x.parquet")), tmp_path / "link.parquet"):
        with pytest.raises(LedgerError, match=r"is a file of the run itself\. Export to another name"):
            export([finished.uri], target)
    (tmp_path / "device.jsonl").symlink_to("/dev/null")
    (tmp_path / "folder.jsonl").mkdir()
    for target in (tmp_path / "device.jsonl", tmp_path / "folder.jsonl"):
        with pytest.raises(LedgerError, match=r"is no regular file\. Give another place\."):
            export([finished.uri], target)
    assert Path(finished.path("merged.parquet")).read_bytes() == before and Path("/dev/null").is_char_device()


def test_a_full_disk_leaves_no_half_file(tmp_path: Path, finished: RunDirectory) -> None:
    """A file size limit simulates a full disk."""
    (tmp_path / "out.jsonl").write_text("old")
    command = f"ulimit -f 4; exec {sys.executable} -m rollout_ray.run"
    for words, code in ((f"export {finished.uri} out.jsonl", 6), ("prepare demo 5000 out.jsonl", 3)):
        done = subprocess.run(
            ["bash", "-c", f"{command} {words}"],
            cwd=tmp_path,
            env=clean_environment() | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code and "out.jsonl cannot be written: " in done.stderr, done.stderr
        assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"] and (tmp_path / "out.jsonl").read_text() == "old"


def test_prepare_spares_its_input(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"question": "a\u2028b", "answer": "so #### 7"}\n')
    with pytest.raises(DatasetError, match="is the input itself; give another output"):
        prepare_gsm8k(source, tmp_path / "." / "in.jsonl")
    assert prepare_gsm8k(source, tmp_path / "out.parquet") == 1
    for answer in ("3", '"no gold"', "null", '"x #### \\ud800"'):
        source.write_text(f'{{"question": "a", "answer": {answer}}}\n')
        with pytest.raises(DatasetError, match=r"in.jsonl, line 1: a GSM8K row has a question"):
            prepare_gsm8k(source, tmp_path / "out.parquet")
    with pytest.raises(ConfigError, match="-3 questions cannot be made"):
        prepare_demo(-3, 1, tmp_path / "out.parquet")


def test_rows_are_read_within_a_row_group_and_fewer_where_they_are_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrow holds a column that it joins from two row groups only up to 2 GiB."""
    table = pa.table({"n": list(range(100)), "text": [f"{n} " * 1000 for n in range(100)]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=30, use_dictionary=False)
    with pq.ParquetFile(tmp_path / "t.parquet") as file:
        assert [batch.num_rows for batch in row_batches(file, 1000)] == [30, 30, 30, 10]
        assert [batch.num_rows for batch in row_batches(file, 20, ["n"])] == [20, 10, 20, 10, 20, 10, 10]
        monkeypatch.setattr(files_module, "READ_BYTES", 30_000)
        batches = list(row_batches(file, 1000))
        assert max(batch.num_rows for batch in batches) == 10 and pa.Table.from_batches(batches).equals(table)
