"""Test the run directory: commits, refusals, and leftovers of a crash."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import shutil
import stat
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout_ray.actors.scorer import part_table
from rollout_ray.core.errors import LedgerError
from rollout_ray.core.records import PART_SCHEMA, ScoredQuestion
from rollout_ray.storage.event_log import EventLog
from rollout_ray.storage.parts import decode_part, encode_part
from rollout_ray.storage.run_directory import RunDirectory

IDENTITY = {"sampling.seed": 1, "model.model_path": "demo"}


def scored(*ids: str) -> list[ScoredQuestion]:
    return [ScoredQuestion(i, (), 0.0, 0.0, 0.0, 0.0) for i in ids]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(str(tmp_path / "run"))
    assert run.open(IDENTITY, {"note": "first"}) is False
    return run


@pytest.mark.parametrize("folder", ["why?", "a#b", "50%20", "two words", "[1]"])
def test_a_folder_may_have_any_name(tmp_path: Path, folder: str) -> None:
    run = RunDirectory(str(tmp_path / folder / "run"))
    run.open(IDENTITY, {})
    run.write_part(part_table(scored("a")))
    assert run.done_ids() == run.scan_parts({"a"}).done == {"a"}


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


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (2, "the number of questions was 1 and is 2"),
        (1, "the questions are others: a prompt, a gold answer or an id has changed"),
    ],
)
def test_other_questions_are_refused_in_words(tmp_path: Path, count: int, words: str) -> None:
    run = RunDirectory(str(tmp_path))
    run.open({"data.fingerprint": "7943"}, {"dataset": {"questions": 1}})
    run.write_part(part_table(scored("a")))
    with pytest.raises(LedgerError, match=f"another config: {words}. Give another --output_dir"):
        run.open({"data.fingerprint": "c40a"}, {"dataset": {"questions": count}})


def test_another_config_is_refused_and_every_changed_field_named(run: RunDirectory) -> None:
    run.write_part(part_table(scored("a")))
    changed = {"sampling.seed": 2, "sampling.stop": ["x"]}
    with pytest.raises(LedgerError) as raised:
        run.open(changed, {})
    message = str(raised.value)
    assert "sampling.seed was 1 and is 2" in message
    assert 'model.model_path was "demo" and is null' in message
    assert 'sampling.stop was null and is ["x"]' in message


def test_a_run_that_has_committed_nothing_gives_way_to_another_config(run: RunDirectory) -> None:
    corrected = {**IDENTITY, "model.model_path": "path/to/model"}
    again = RunDirectory(run.uri)
    assert again.open(corrected, {"note": "second"}) is False
    assert again.record()["identity"] == corrected and again.record()["note"] == "second"
    again.write_part(part_table(scored("a")))
    with pytest.raises(LedgerError, match="holds a run with another config"):
        run.open(IDENTITY, {})
    assert RunDirectory(run.uri).open(corrected, {}) is True
    assert again.scan_parts({"a"}).done == {"a"}


def test_a_merged_file_without_its_parts_is_not_given_up(run: RunDirectory) -> None:
    run.write_atomically("merged.parquet", b"merged")
    with pytest.raises(LedgerError, match="holds a run with another config"):
        run.open({**IDENTITY, "sampling.seed": 2}, {})


def test_a_part_that_a_run_which_gave_way_still_writes_does_not_count(run: RunDirectory) -> None:
    RunDirectory(run.uri).open({**IDENTITY, "sampling.seed": 2}, {})
    late = run.write_part(part_table(scored("a")))
    again = RunDirectory(run.uri)
    assert again.open({**IDENTITY, "sampling.seed": 2}, {}) is True
    assert again.scan_parts({"a"}).quarantined == {late: "belongs to a run with another config, data set or model"}


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


def damage(run: RunDirectory) -> dict[str, str]:
    """Write one part of every kind that must not count. Return the expected reason for each."""
    parts = Path(run.path("parts"))

    def part(*ids: str) -> Path:
        return Path(run.path(run.write_part(part_table(scored(*ids)))))

    torn = part("torn")
    empty = part("empty")
    flipped = part("flipped")
    renamed = part("renamed")
    torn.write_bytes(torn.read_bytes()[:-20])
    empty.write_bytes(b"")
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    other = renamed.rename(parts / "part-from-elsewhere.parquet")
    foreign_run = RunDirectory(f"{run.uri}-other")
    foreign_run.open({**IDENTITY, "sampling.seed": 2}, {})
    foreign = foreign_run.path(foreign_run.write_part(part_table(scored("a"))))
    copied = shutil.copy(foreign, parts)
    unknown = part("b", "unheard-of")
    columns = pa.table({"question_id": ["c"]}).replace_schema_metadata({"rollout_ray": "{}"})
    sink = pa.BufferOutputStream()
    pq.write_table(columns, sink)
    digest = hashlib.blake2b(sink.getvalue(), digest_size=16).hexdigest()
    narrow = parts / f"part-{1:020d}-{digest}.parquet"
    narrow.write_bytes(sink.getvalue())
    altered = "is torn or altered: its content does not match the checksum in its name"
    return {
        torn.name: altered,
        empty.name: altered,
        flipped.name: altered,
        other.name: "does not have the name of a part file",
        Path(copied).name: "belongs to a run with another config, data set or model",
        unknown.name: "holds the question unheard-of, which is not in the data set",
        narrow.name: "does not have the columns of a part of this version",
    }


def test_parts_that_are_damaged_or_foreign_are_put_aside_and_the_others_count(run: RunDirectory) -> None:
    run.write_part(part_table(scored("a", "b")))
    run.write_part(part_table(scored("b")))
    expected = damage(run)
    before = {name: Path(run.path(f"parts/{name}")).read_bytes() for name in expected}
    part_scan = run.scan_parts({"a", "b", "c", "torn", "empty", "flipped", "renamed"})
    assert part_scan.quarantined == {f"parts/{name}": reason for name, reason in expected.items()}
    assert part_scan.done == {"a", "b"}
    assert {p.name: p.read_bytes() for p in Path(run.path("parts/bad")).iterdir()} == before
    assert len(run.parts()) == 2
    again = run.scan_parts({"a", "b"})
    assert again.done == {"a", "b"} and not again.quarantined


def test_what_was_put_aside_is_never_overwritten(run: RunDirectory) -> None:
    name = Path(run.path("parts")) / "part-x.parquet"
    for content in (b"one", b"two", b"three"):
        name.write_bytes(content)
        run.scan_parts(set())
    assert {p.read_bytes() for p in Path(run.path("parts/bad")).iterdir()} == {b"one", b"two", b"three"}


def test_a_flipped_bit_anywhere_in_a_part_is_noticed(run: RunDirectory) -> None:
    name = run.write_part(part_table(scored(*map(str, range(300)))))
    path = Path(run.path(name))
    whole = path.read_bytes()
    rng = random.Random(0)
    places = {0, len(whole) - 1, *range(len(whole) - 12, len(whole)), *rng.sample(range(len(whole)), 400)}
    for place in places:
        altered = bytearray(whole)
        altered[place] ^= 1 << rng.randrange(8)
        path.write_bytes(altered)
        with pytest.raises(LedgerError, match="torn or altered"):
            run.read_part(name)
    path.write_bytes(whole)
    assert len(run.read_part(name).ids()) == 300


@given(st.integers(1, 700), st.data())
def test_chosen_rows_of_a_part_come_back_as_they_were(count: int, data: st.DataObject) -> None:
    table = part_table(scored(*map(str, range(count))))
    name, content = encode_part(table, "run")
    part = decode_part(f"/a/{name}", content, "run")
    chosen = sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1)))
    assert part.rows(chosen).equals(table.take(chosen))
    assert (part.num_rows, part.nbytes) == (count, table.nbytes)


def test_a_line_that_a_crash_cut_off_is_not_left_in_the_events(run: RunDirectory) -> None:
    EventLog(run).write("begun")
    with open(run.path("events.jsonl"), "a") as stream:
        stream.write('{"time": 1, "ev')
    EventLog(run).write("resumed")
    assert [event["event"] for event in run.events()] == ["begun", "resumed"]


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


@pytest.mark.parametrize("umask", [0o002, 0o077])
def test_every_file_of_a_run_follows_the_umask(tmp_path: Path, umask: int) -> None:
    """A colleague in the group can resume a run only if the group may write its files."""
    before = os.umask(umask)
    try:
        run = RunDirectory(str(tmp_path / "run"))
        with run.lease():
            run.open(IDENTITY, {})
            run.write_part(part_table(scored("a")))
            EventLog(run).write("begun")
            paths = [tmp_path / "run", *(tmp_path / "run").rglob("*")]
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in paths}
    finally:
        os.umask(before)
    assert {"events.jsonl", "run.json", "parts"} < set(modes)
    for name, mode in modes.items():
        assert mode == ((0o777 if "." not in name else 0o666) & ~umask), name


def test_events_are_lines_of_json(run: RunDirectory) -> None:
    log = EventLog(run)
    log.write("begun", questions=3)
    log.write("finished")
    assert [(e["event"], e.get("questions")) for e in run.events()] == [("begun", 3), ("finished", None)]
