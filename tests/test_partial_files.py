"""Samples of questions that are not complete are saved at a stop, and the next session draws only the rest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rollout_ray.actors.scorer import Receipt, ScorerActor
from rollout_ray.config.arms import resolve_arms
from rollout_ray.core.errors import LedgerError
from rollout_ray.core.records import Completion, Generated, Question, RolloutRequest
from rollout_ray.scoring.custom_reward import RewardSources
from rollout_ray.storage.partial_files import PARTIAL_SCHEMA, SavedSamples, remove_samples, save_samples, scan_samples
from rollout_ray.storage.run_directory import PartScan, RunDirectory, is_written_by_run
from tests.conftest import simulated_greedy

IDENTITY = {"sampling.seed": 1}
SAMPLES = 4


def drawn(number: int, text: str = "Answer: 7", reason: Any = "stop") -> Completion:
    error = "refused" if reason == "error" else None
    return Completion(number, text, 3, 5, reason, "engine-0", error, 2)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(str(tmp_path / "run"))
    run.open(IDENTITY, {})
    return run


def scan(run: RunDirectory, done: Iterable[str] = (), part_scan: PartScan | None = None) -> dict[str, set[int]]:
    return scan_samples(run, part_scan or PartScan(set(done)), {"a", "b"}, SAMPLES)


def test_saved_samples_come_back_as_they_were_drawn(run: RunDirectory) -> None:
    assert save_samples(run, {}) == 0 and run.partial_files() == []
    assert save_samples(run, {"a": [drawn(2), drawn(0, "\N{SNOWMAN}", "length")], "b": [drawn(1)]}) == 3
    assert scan(run) == {"a": {0, 2}, "b": {1}}
    saved = SavedSamples(run)
    assert saved.of("a") == {2: drawn(2), 0: drawn(0, "\N{SNOWMAN}", "length")} and saved.of("c") == {}
    assert run.parts() == [] and all(map(is_written_by_run, run.partial_files())), "no run reads them as its input"


def test_every_field_of_a_completion_is_saved() -> None:
    assert PARTIAL_SCHEMA.names == ["question_id", *(field.name for field in fields(Completion))]


def test_an_error_row_is_not_saved_because_another_try_may_succeed(run: RunDirectory) -> None:
    assert save_samples(run, {"a": [drawn(0, "", "error"), drawn(1)]}) == 1
    assert scan(run) == {"a": {1}}


def test_a_sample_that_two_files_have_counts_once_and_the_first_counts(run: RunDirectory) -> None:
    save_samples(run, {"a": [drawn(0, "first")]})
    save_samples(run, {"a": [drawn(0, "second"), drawn(1)]})
    save_samples(run, {"a": [drawn(1)]})
    assert scan(run) == {"a": {0, 1}} and len(run.partial_files()) == 2
    assert SavedSamples(run).of("a")[0].full_text == "first"


def test_a_file_is_deleted_once_its_questions_are_committed(run: RunDirectory) -> None:
    """A driver that was killed between the commit and the deletion leaves the file."""
    save_samples(run, {"a": [drawn(0)]})
    save_samples(run, {"a": [drawn(1)], "b": [drawn(1)]})
    assert scan(run, done=["a"]) == {"b": {1}} and len(run.partial_files()) == 1
    remove_samples(run)
    assert run.partial_files() == []


def test_a_question_is_never_kept_whole(run: RunDirectory) -> None:
    """Two drivers at once may leave all samples. A scorer takes up a question with the first chunk that it gets."""
    save_samples(run, {"a": map(drawn, range(SAMPLES))})
    assert scan(run) == {"a": {0, 1, 2}}


def test_samples_of_another_config_do_not_count(run: RunDirectory) -> None:
    other = RunDirectory(run.uri)
    other.open({"sampling.seed": 2}, {})
    save_samples(run, {"a": [drawn(0)]})  # a driver that is not told yet
    torn = Path(other.path(f"partial/partial-{7:020d}-{'0' * 32}.parquet"))
    torn.write_bytes(b"PAR1")
    part_scan = PartScan()
    assert scan(other, part_scan=part_scan) == {} and other.partial_files() == []
    assert {reason.split(":")[0] for reason in part_scan.quarantined.values()} == {
        "belongs to a run with another config, data set or model",
        "is torn or altered",
    }
    assert len(list(Path(other.path("parts/bad")).iterdir())) == 2


def test_a_changed_config_is_refused_where_samples_are_saved(run: RunDirectory) -> None:
    save_samples(run, {"a": [drawn(0)]})
    with pytest.raises(LedgerError, match=r"another config: sampling\.seed was 1 and is 2"):
        RunDirectory(run.uri).open({"sampling.seed": 2}, {})


def test_what_a_killed_writer_left_does_not_count(run: RunDirectory) -> None:
    save_samples(run, {"a": [drawn(0)]})
    half = Path(run.path("partial/.partial-1.parquet.77.tmp"))
    half.write_bytes(b"half")
    assert scan(run) == {"a": {0}}
    RunDirectory(run.uri).open(IDENTITY, {})
    assert not half.exists() and scan(run) == {"a": {0}}


class Session:
    """A scorer of one session, without Ray."""

    def __init__(self, folder: Path, scorer_index: int) -> None:
        cfg = simulated_greedy(folder, sampling={"n_samples": SAMPLES}, arms={"arm_set": "samples"})
        self.run, self.index = RunDirectory(cfg.output.output_dir), scorer_index
        self.run.open(IDENTITY, {})
        self.kept = scan(self.run, self.run.done_ids())
        self.scorer = ScorerActor(scorer_index)
        self.scorer.begin(self.run, cfg, resolve_arms(cfg), RewardSources())

    def score(self, question_id: str, ordinal: int, numbers: list[int]) -> Receipt:
        request = RolloutRequest(ordinal, self.index, Question(question_id, "?", "7"), numbers[0], numbers[-1] + 1)
        return self.scorer.score([Generated(request, tuple(map(drawn, numbers)))], {ordinal})

    def save(self) -> Receipt:
        receipt = self.scorer.save()
        self.scorer.close()
        return receipt


def test_a_question_that_three_sessions_drew_is_the_question_that_one_draws(tmp_path: Path) -> None:
    """The sessions have other numbers of scorers, and number the questions otherwise."""
    first = Session(tmp_path / "three", 0)
    first.score("a", 0, [0, 3])  # of one chunk from 0 to 3, in which 1 and 2 were still decoded
    first.score("b", 1, [0, 1, 2, 3])
    receipt = first.save()
    assert (receipt.committed, receipt.saved) == ((1,), 2)
    second = Session(tmp_path / "three", 1)
    assert second.kept == {"a": {0, 3}}
    second.score("a", 7, [2])
    receipt = second.save()
    assert (receipt.committed, receipt.saved) == ((), 1)
    third = Session(tmp_path / "three", 0)
    assert third.kept == {"a": {0, 2, 3}}
    third.score("a", 3, [1])
    receipt = third.save()
    assert (receipt.committed, receipt.saved) == ((3,), 0)
    whole = Session(tmp_path / "one", 0)
    whole.score("a", 0, [0, 1, 2, 3])
    whole.score("b", 1, [0, 1, 2, 3])
    whole.save()
    assert rows(third.run) == rows(whole.run) and Session(tmp_path / "three", 0).kept == {}


def rows(run: RunDirectory) -> list[dict[str, Any]]:
    stored = [row for name in run.parts() for row in pq.read_table(run.path(name)).to_pylist()]
    return sorted(stored, key=lambda row: str(row["question_id"]))


def test_a_session_that_adds_nothing_saves_nothing(tmp_path: Path) -> None:
    first = Session(tmp_path / "run", 0)
    first.score("a", 0, [1])
    assert first.save().saved == 1
    second = Session(tmp_path / "run", 0)
    second.score("a", 0, [1])
    assert second.save().saved == 0 and len(second.run.partial_files()) == 1
