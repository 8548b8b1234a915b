"""Test whole runs with damaged parts, a full disk, and a read-only directory."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from rollout_ray import collect
from rollout_ray.storage.run_directory import RunDirectory
from tests.conftest import ROOT, Command, clean_environment, demo_rows
from tests.test_collect import keys, simulated


def test_damaged_parts_are_put_aside_and_their_questions_drawn_again(
    tmp_path: Path, local_ray: None, caplog: pytest.LogCaptureFixture
) -> None:
    values = simulated(tmp_path / "run").model_dump() | {"output": {"output_dir": str(tmp_path / "run"), "part_rows": 5}}
    cfg = simulated(tmp_path / "run").model_validate(values)
    expected = keys(collect(demo_rows(40), cfg))
    parts = [tmp_path / "run" / name for name in RunDirectory(str(tmp_path / "run")).parts()]
    assert len(parts) >= 3
    parts[0].write_bytes(parts[0].read_bytes()[:-1])
    content = bytearray(parts[1].read_bytes())
    content[len(content) // 3] ^= 16
    parts[1].write_bytes(content)
    rollouts = collect(demo_rows(40), cfg)
    assert keys(rollouts) == expected
    assert 0 < rollouts.summary.session_tokens < rollouts.summary.tokens
    assert {p.name for p in (tmp_path / "run/parts/bad").iterdir()} == {parts[0].name, parts[1].name}
    reported = [event for event in rollouts.run.events() if event["event"] == "part_put_aside"]
    assert [event["part"] for event in reported] == [f"parts/{part.name}" for part in parts[:2]]
    assert "is torn or altered: its content does not match the checksum in its name; it is in parts/bad now" in caplog.text


def test_rows_that_two_drivers_drew_are_counted_and_reported(
    tmp_path: Path, local_ray: None, caplog: pytest.LogCaptureFixture
) -> None:
    """A driver that was suspended too long before a commit leaves an extra part with other rows."""
    cfg = simulated(tmp_path / "run")
    first = collect(demo_rows(10), cfg)
    part = first.run.read_part(first.run.parts()[0])
    table = part.rows(list(range(part.num_rows)))
    first.run.write_part(table.set_column(2, table.schema.field(2), [[0.123] * table.num_rows]))
    again = collect(demo_rows(10), cfg)
    assert again.table().equals(first.table())
    last = again.run.events()[-1]
    assert last["disagreeing"] == last["duplicates"] == table.num_rows
    assert f"{table.num_rows} questions stand in two parts with different rows" in caplog.text


# Runs in its own mount namespace, where a small file system holds the run directory.
ON_A_SMALL_DISK = """
import errno, json, os, sys
from pathlib import Path
from rollout_ray.actors.scorer import part_table
from rollout_ray.config.schema import DataConfig
from rollout_ray.core.errors import LedgerError
from rollout_ray.storage.event_log import EventLog
from rollout_ray.storage.run_directory import RunDirectory
from rollout_ray.results.merge import merge
from rollout_ray.data.question_set import load_questions
from tests.test_merge import input_rows, scored

refusal, disk = sys.argv[1], Path("disk")
questions = load_questions(input_rows(400), DataConfig())
table = part_table([scored(i, 2) for i in questions.ids])

def close_disk():
    if refusal == "read-only":
        os.system("mount -o remount,ro disk")
    else:
        with open("disk/fill", "wb", buffering=0) as stream:
            try:
                while True:
                    stream.write(bytes(4096))
            except OSError as error:
                assert error.errno == errno.ENOSPC
def open_disk():
    if refusal == "read-only":
        os.system("mount -o remount,rw disk")
    else:
        os.remove("disk/fill")
def files():
    return {str(p): p.read_bytes() for p in sorted(disk.rglob("*")) if p.is_file() and p.name != "fill"}
def refused(name, action):
    close_disk()
    before = files()
    try:
        action()
    except LedgerError as error:
        print(f"{name}: {error}")
    else:
        raise AssertionError(f"{name} was not refused")
    assert files() == before, name
    open_disk()
    action()

run = RunDirectory("disk/run")
run.make("parts")
refused("run.json", lambda: run.open({}, {"filler": "x" * 9000}))
refused("part", lambda: run.write_part(table))
def log_much():
    for number in range(200):
        EventLog(run).write("event", number=number)
if refusal == "full":
    close_disk()
    try:
        log_much()
    except LedgerError as error:
        print(f"events.jsonl: {error}")
    run.events()  # every line is whole
    open_disk()
    log_much()
else:
    refused("events.jsonl", log_much)
refused("merge", lambda: merge(run, questions, "questions", 2, {}))
refused("merge again", lambda: merge(run, questions, "trajectories", 2, {}))
def leased():
    with run.lease():
        pass
refused("lease", leased)
"""

SENTENCES = {
    "full": "no space is left for {run} ([Errno 28] ",
    "read-only": "{run} cannot be written ([Errno 30] ",
}


@pytest.mark.parametrize("refusal", SENTENCES)
def test_a_full_or_read_only_disk_is_one_sentence_and_leaves_no_torn_file(
    tmp_path: Path, refusal: str, run_alone: Command
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "script.py").write_text(ON_A_SMALL_DISK)
    done = run_alone(
        f"set -e; mount -t tmpfs -o size=1500k none disk; {sys.executable} script.py {refusal}",
        tmp_path,
        clean_environment() | {"PYTHONPATH": str(ROOT)},
        unshared=["--mount"],
    )
    assert done.returncode == 0, done.stderr
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert set(said) == {"run.json", "part", "events.jsonl", "merge", "merge again", "lease"}
    for sentence in said.values():
        assert sentence.startswith(SENTENCES[refusal].format(run=tmp_path / "disk/run"))
        assert "run the same command again, which goes on from there" in sentence


def test_a_full_temporary_disk_is_named_when_a_file_is_made_for_a_store(tmp_path: Path, run_alone: Command) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "script.py").write_text(
        "from rollout_ray.storage.folder import Folder\n"
        "Folder('s3://bucket/run?endpoint_override=127.0.0.1:9&region=x').write_atomically('file', bytes(2_000_000))\n"
    )
    done = run_alone(
        f"mount -t tmpfs -o size=1m none disk; TMPDIR={tmp_path}/disk {sys.executable} script.py",
        tmp_path,
        clean_environment() | {"PYTHONPATH": str(ROOT)},
        unshared=["--mount"],
    )
    said = done.stderr.splitlines()[-1]
    assert f"cannot be completed in {tmp_path}/disk before its upload ([Errno 28] No space left on device)" in said
    assert "name another disk with TMPDIR" in said


def test_a_run_on_a_disk_that_fills_stops_and_goes_on_when_there_is_room(tmp_path: Path, run_alone: Command) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in demo_rows(100)))
    rollout = (
        f"{sys.executable} -m rollout_ray.run --dataset rows.jsonl --output_dir disk/run --backend simulated "
        "--part_rows 10 --quiet --sim_tokens_per_second 500000"
    )
    done = run_alone(
        f"""mount -t tmpfs -o size=60k none disk
        {rollout}; echo "first $?"
        ls -A disk/run disk/run/parts | grep tmp
        ls disk/run/parts | wc -l
        mount -o remount,size=20m disk
        {rollout}; echo "second $?"
        cp disk/run/merged.parquet disk/run/events.jsonl .; ls -A disk/run""",
        tmp_path,
        clean_environment() | {"PYTHONPATH": str(ROOT)},
        unshared=["--mount"],
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "first 6" and int(lines[1]) > 0, done.stdout + done.stderr
    assert [line for line in done.stderr.splitlines() if not line.startswith("[")] == [  # Ray's own lines
        f"rollout: no space is left for {tmp_path}/disk/run ([Errno 28] No space left on device); nothing half-written was "
        "kept. Make room and run the same command again, which goes on from there"
    ]
    assert "second 0" in lines
    assert lines[lines.index("parts") - 1 :] == ["merged.parquet", "parts", "report.html", "run.json"]
    import pyarrow.parquet as pq

    table = pq.read_table(tmp_path / "merged.parquet")
    assert table.num_rows == 100 and all(len(t) == 8 for t in table.column("trajectories").to_pylist())
    named = [json.loads(line)["event"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert named[0] == "begun" and "resumed" in named and named[-1] == "finished"
