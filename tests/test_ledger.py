"""The run directory: what is committed, what is refused, what a crash leaves."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from actors.scorer import part_table
from rollout_ray.errors import LedgerError
from rollout_ray.ledger import EventLog, RunDirectory, model_fingerprint
from rollout_ray.records import PART_SCHEMA, ScoredQuestion

IDENTITY = {"sampling.seed": 1, "model.model_path": "demo"}


def scored(*ids: str) -> list[ScoredQuestion]:
    return [ScoredQuestion(i, (), 0.0, 0.0, 0.0, 0.0) for i in ids]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(str(tmp_path / "run"))
    assert run.open(IDENTITY, {"note": "first"}) is False
    return run


def test_what_is_done_is_what_the_parts_hold(run: RunDirectory) -> None:
    assert run.done_ids() == set()
    run.write_part(part_table(scored("a", "b")))
    run.write_part(part_table(scored("c")))
    assert run.done_ids() == {"a", "b", "c"}
    assert len(run.parts()) == 2
    with run.open_parquet(run.parts()[0]) as file:
        assert file.schema_arrow.equals(PART_SCHEMA)


def test_opening_it_again_goes_on(run: RunDirectory) -> None:
    run.write_part(part_table(scored("a")))
    again = RunDirectory(run.uri)
    assert again.open(IDENTITY, {"note": "second"}) is True
    assert again.done_ids() == {"a"}
    assert again.record()["note"] == "first"


def test_another_config_is_refused_and_every_changed_field_named(run: RunDirectory) -> None:
    changed = {"sampling.seed": 2, "sampling.stop": ["x"]}
    with pytest.raises(LedgerError) as raised:
        run.open(changed, {})
    message = str(raised.value)
    assert "sampling.seed was 1 and is 2" in message
    assert 'model.model_path was "demo" and is null' in message
    assert 'sampling.stop was null and is ["x"]' in message


def test_what_a_killed_writer_left_is_not_taken_for_a_part(run: RunDirectory) -> None:
    leftover = Path(run.path("parts")) / ".part-1.parquet.77.tmp"
    leftover.write_bytes(b"half")
    assert run.done_ids() == set()
    run.open(IDENTITY, {})
    assert not leftover.exists()


def test_a_write_that_fails_leaves_nothing(run: RunDirectory) -> None:
    def fail(stream: object) -> None:
        raise OSError("no space left on device")

    with pytest.raises(LedgerError, match="no space"):
        run.write_atomically("merged.parquet", fail)
    assert not Path(run.path("merged.parquet")).exists()
    assert not list(Path(run.uri).glob(".*"))


def test_a_broken_part_is_named(run: RunDirectory) -> None:
    name = run.write_part(part_table(scored("a")))
    Path(run.path(name)).write_bytes(b"PAR1 torn")
    with pytest.raises(LedgerError, match=name):
        run.done_ids()


def test_a_run_directory_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LedgerError, match="cannot be written"):
        RunDirectory(str(tmp_path / "file" / "run")).open(IDENTITY, {})


def test_a_folder_that_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="is not a run directory"):
        RunDirectory(str(tmp_path)).record()


def test_it_crosses_a_process_and_takes_uris(run: RunDirectory, tmp_path: Path) -> None:
    copy = pickle.loads(pickle.dumps(run))
    copy.write_part(part_table(scored("z")))
    assert run.done_ids() == {"z"}
    by_uri = RunDirectory(f"file://{tmp_path}/run")
    assert by_uri.done_ids() == {"z"}


def test_events_are_lines_of_json(run: RunDirectory) -> None:
    log = EventLog(run)
    log.write("begun", questions=3)
    log.write("finished")
    lines = [json.loads(line) for line in Path(run.path("events.jsonl")).read_text().splitlines()]
    assert [(e["event"], e.get("questions")) for e in lines] == [("begun", 3), ("finished", None)]


def test_two_checkpoints_in_one_place_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"1")
    first = model_fingerprint(str(tmp_path))
    assert model_fingerprint(str(tmp_path)) == first
    (tmp_path / "model.safetensors").write_bytes(b"22")
    assert model_fingerprint(str(tmp_path)) != first
    assert model_fingerprint("org/model") == "org/model"
