"""Test `rollout verify`: it names altered values, accepts unaltered ones, and reports unchecked ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_ray.api.collect import collect
from rollout_ray.config.schema import Layout, RunConfig
from rollout_ray.core.errors import ConfigError, LedgerError, VerifyError
from rollout_ray.core.records import Question, Trajectory
from rollout_ray.results import merged_file as merged_module
from rollout_ray.results.findings import MAX_PRINTED
from rollout_ray.results.verify import verify
from rollout_ray.storage.run_directory import RunDirectory
from tests.conftest import Command, demo_rows
from tests.finished_runs import INPUTS, Rows, altered, finished, merged_path


def found(path: str, **options: Any) -> list[tuple[str, str | None, int | None, str]]:
    result = verify(path, **options)
    assert result.agrees == (not result.disagreements)
    return [(d.question_id, d.arm, d.sample, d.what) for d in result.disagreements]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """30 questions under eight arms."""
    return finished(tmp_path_factory.mktemp("verify") / "run", demo_rows(30))


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """The same run with one row per trajectory."""
    folder = tmp_path_factory.mktemp("verify-flat") / "run"
    return finished(folder, demo_rows(30), output={"output_dir": str(folder), "layout": "trajectories"})


@pytest.mark.parametrize("layout", ["questions", "trajectories", "responses"])
@pytest.mark.parametrize("kind", INPUTS)
def test_what_nobody_touched_agrees(tmp_path: Path, kind: str, layout: Layout) -> None:
    rows, data = INPUTS[kind]
    sections = {"data": data, "output": {"output_dir": str(tmp_path / "run"), "layout": layout}}
    result = verify(finished(tmp_path / "run", rows, **sections).uri)
    assert result.lines()[:-1] == (
        ["a 'responses' file has no keys, seeds, answers or rewards that could be checked"] if layout == "responses" else []
    )
    assert result.agrees and result.questions == len(rows) and result.trajectories == 8 * len(rows)


@pytest.mark.parametrize("arms", ["regime-w-probes", "samples", "greedy"])
def test_other_arms_and_rewards_agree(tmp_path: Path, arms: str) -> None:
    sections = {"arms": {"arm_set": arms}, "scoring": {"reward_preset": "regime-w-2"}, "sampling": {"seed": 7}}
    assert verify(finished(tmp_path / "run", demo_rows(20), **sections).uri).agrees


ALTERATIONS: dict[str, Callable[[Any], Any]] = {
    "seed": lambda v: v ^ 1,
    "temperature": lambda v: v + 0.1,
    "top_p": lambda v: v - 0.01,
    "reasoning": lambda v: v + " indeed",
    "answer": lambda v: "12345678" if v is None else None,
    "score_status": lambda v: "no_gold",
    "correct": lambda v: None if v else True,
    "reward": lambda v: 0.0 if v is None else v + 1e-6,
    "num_tokens": lambda v: -1,
    "num_prompt_tokens": lambda v: None if v is None else -5,
    "policy_version": lambda v: -1,
    "finish_reason": lambda v: "stop" if v == "error" else "error",
    "error": lambda v: None if v else "it was the engine",
    "full_text": lambda v: "Answer: 12345678",
}


@pytest.mark.usefixtures("long_computation")
@settings(max_examples=60)
@given(st.sampled_from(sorted(ALTERATIONS)), st.integers(0, 239), st.booleans())
def test_an_altered_value_is_named_by_question_arm_and_sample(
    tmp_path_factory: pytest.TempPathFactory, run: RunDirectory, flat: RunDirectory, name: str, place: int, long: bool
) -> None:
    key: list[Any] = []

    def change(rows: Rows) -> None:
        row = rows[place] if long else rows[place // 8]
        trajectory = row if long else row["trajectories"][place % 8]
        trajectory[name] = ALTERATIONS[name](trajectory[name])
        key.extend((row["question_id"], trajectory["arm"], trajectory["sample"]))

    target = tmp_path_factory.mktemp("altered") / "file.parquet"
    names = found(altered(merged_path(flat if long else run), target, change))
    assert any((question, arm, sample) == tuple(key) for question, arm, sample, _ in names)
    assert {question for question, _, _, _ in names} == {key[0]}


@pytest.mark.parametrize("layout", ["questions", "trajectories"])
def test_an_altered_reward_or_seed_is_named_and_nothing_else(
    tmp_path: Path, run: RunDirectory, flat: RunDirectory, layout: str
) -> None:
    def change(rows: Rows) -> None:
        every = rows if layout == "trajectories" else [t for row in rows for t in row["trajectories"]]
        every[20]["reward"], every[50]["seed"] = 9.5, 7

    path = merged_path(flat if layout == "trajectories" else run)
    result = verify(altered(path, tmp_path / "file.parquet", change))
    first, second = sorted(result.disagreements, key=lambda d: d.what)
    every = [
        t | {"question_id": r["question_id"]}
        for r in pq.read_table(merged_path(run)).to_pylist()
        for t in r["trajectories"]
    ]
    assert (first.question_id, first.arm, first.what, first.stored) == (
        every[20]["question_id"],
        every[20]["arm"],
        "reward",
        9.5,
    )
    assert first.recomputed == pytest.approx(every[20]["reward"])
    assert (second.arm, second.what, second.stored, second.recomputed) == (every[50]["arm"], "seed", 7, every[50]["seed"])
    assert str(second) == (
        f"question {every[50]['question_id']}, {every[50]['arm']}, sample 0: seed: stored 7, recomputed {every[50]['seed']}"
    )


@pytest.mark.parametrize("name", ["s_end", "s_path", "s_cf", "s_wm"])
def test_an_altered_coherence_is_named(tmp_path: Path, run: RunDirectory, flat: RunDirectory, name: str) -> None:
    for source, row in ((run, 4), (flat, 35)):  # in the flat layout, in only one row of its question
        path = altered(
            merged_path(source), tmp_path / "file.parquet", lambda rows, row=row: rows[row].update({name: 0.123})
        )
        ids = pq.read_table(merged_path(source), columns=["question_id"]).column(0).to_pylist()
        assert [(question, what.partition(" ")[0]) for question, _, _, what in found(path)] == [(ids[row], name)]


def test_a_changed_text_shows_in_what_depends_on_it_and_floods_nothing(tmp_path: Path, run: RunDirectory) -> None:
    def change(rows: Rows) -> None:
        entry = next(t for t in rows[9]["trajectories"] if t["answer"] is not None)
        entry["full_text"] = "indeed " + entry["full_text"]

    names = found(altered(merged_path(run), tmp_path / "file.parquet", change))
    whats = [what for _, _, _, what in names]
    assert whats[0] == "reasoning" and whats[1] == "s_path" and len(whats) == 3
    assert whats[2].startswith("s_wm (and with it the rewards of ")


def test_lost_doubled_and_foreign_questions_are_named(tmp_path: Path, run: RunDirectory, flat: RunDirectory) -> None:
    ids = [row["question_id"] for row in pq.read_table(merged_path(run)).to_pylist()]
    file = tmp_path / "file.parquet"
    assert found(altered(merged_path(run), file, lambda rows: rows.pop(11))) == [(ids[11], None, None, "is missing")]
    doubled = found(altered(merged_path(run), file, lambda rows: rows.append(rows[3])))
    assert doubled == [(ids[3], None, None, "stands twice, in rows 3 and 30 (from 0)")]

    again = found(altered(merged_path(run), file, lambda rows: rows.extend(rows * 5)))
    assert [what for _, _, _, what in again[:5]] == [f"stands twice, in rows {n} and {n + 30} (from 0)" for n in range(5)]
    again = found(altered(merged_path(flat), file, lambda rows: rows.extend(rows[:8])))
    assert [what for _, _, _, what in again] == ["stands twice, in rows 0 and 30 (from 0)"]

    def rename(rows: Rows) -> None:
        for row in rows[16:24]:
            row["question_id"] = "somebody"

    whats = found(altered(merged_path(flat), file, rename))
    assert (ids[2], None, None, "is missing") in whats and ("somebody", None, None, "is not of this run") in whats
    nameless = found(altered(merged_path(run), file, lambda rows: rows[0].update(question_id="")))
    assert nameless == [("of row 0 (from 0)", None, None, "has no question_id"), (ids[0], None, None, "is missing")]


def test_many_lost_questions_are_named_as_far_as_the_file_allows_and_all_in_its_run(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", demo_rows(400), arms={"arm_set": "greedy"})
    ids = [row["question_id"] for row in pq.read_table(merged_path(run)).to_pylist()]
    alone = altered(merged_path(run), tmp_path / "file.parquet", lambda rows: rows.__delitem__(slice(100, 200)))
    result = verify(alone)
    assert result.counts["rows"] >= 1 and {d.question_id for d in result.disagreements} <= {*ids[100:200], "(any)"}
    assert any("number of questions: stored 300, recomputed 400" in str(d) for d in result.disagreements)
    shutil.copy(alone, merged_path(run))
    whole = verify(run.uri)
    assert whole.counts == {"rows": 100} and whole.lines()[MAX_PRINTED] == "... and 80 more"
    assert {d.question_id for d in whole.disagreements} <= set(ids[100:200])


def test_lost_doubled_and_foreign_trajectories_are_named(tmp_path: Path, run: RunDirectory, flat: RunDirectory) -> None:
    question = pq.read_table(merged_path(run)).to_pylist()[5]["question_id"]
    file = tmp_path / "file.parquet"
    lost = [(question, "wolfram_3", 0, "is missing")]
    assert found(altered(merged_path(run), file, lambda rows: rows[5]["trajectories"].pop(3))) == lost
    assert found(altered(merged_path(flat), file, lambda rows: rows.pop(43))) == lost
    twice = found(altered(merged_path(run), file, lambda rows: rows[5]["trajectories"].append(rows[5]["trajectories"][0])))
    assert twice == [(question, "wolfram_0", 0, "stands twice")]
    foreign = found(altered(merged_path(flat), file, lambda rows: rows[43].update(sample=4)))
    assert foreign == [(question, "wolfram_3", 4, "is not of this run"), *lost]


@pytest.mark.parametrize("column", ["prompt", "gold_answer"])
def test_an_altered_question_is_named_by_its_hash_and_else_noticed(
    tmp_path: Path, run: RunDirectory, flat: RunDirectory, column: str
) -> None:
    file = tmp_path / "file.parquet"
    ids = [row["question_id"] for row in pq.read_table(merged_path(run)).to_pylist()]
    hashed = found(altered(merged_path(run), file, lambda rows: rows[6].update({column: "888"})))
    assert (ids[6], None, None, "hash of prompt and gold answer") in hashed and {q for q, _, _, _ in hashed} == {ids[6]}
    one_row = found(altered(merged_path(flat), file, lambda rows: rows[50].update({column: "888"})))
    assert (ids[6], None, None, f"{column} differs between its rows") in one_row
    named = finished(tmp_path / "named", [{**row, "question_id": str(n)} for n, row in enumerate(demo_rows(9))])
    other = verify(altered(merged_path(named), file, lambda rows: rows[6].update({column: "888"})))
    assert "fingerprint of prompts and gold answers" in [d.what for d in other.disagreements]


def test_a_timeout_is_no_disagreement_unless_nothing_had_to_be_compared(tmp_path: Path, run: RunDirectory) -> None:
    def time_out(rows: Rows, status: str) -> None:
        entry = next(t for row in rows for t in row["trajectories"] if t["score_status"] == status)
        entry.update(score_status="timeout", correct=None, reward=None)

    file = tmp_path / "file.parquet"
    result = verify(altered(merged_path(run), file, lambda rows: time_out(rows, "incorrect")))
    assert result.agrees
    assert result.lines()[0] == "1 statuses could not be checked: a comparison failed or timed out, then or now"
    assert [what for _, _, _, what in found(altered(merged_path(run), file, lambda rows: time_out(rows, "no_answer")))] == [
        "score_status",
        "correct",
        "reward",
    ]


def test_symbolic_answers_are_compared_again(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", [{"prompt": f"p{n}", "gold_answer": "\\sqrt{8}"} for n in range(3)])
    assert verify(run.uri).agrees

    def change(rows: Rows) -> None:
        entry = next(t for row in rows for t in row["trajectories"] if t["score_status"] == "correct")
        entry.update(full_text=entry["full_text"].replace("\\sqrt{8}", "2\\sqrt{2}"), answer="2\\sqrt{2}", reward=0.0)
        entry.update(score_status="incorrect", correct=False)

    whats = {what for _, _, _, what in found(altered(merged_path(run), tmp_path / "file.parquet", change))}
    assert {"score_status", "correct", "reward"} <= whats and "answer" not in whats


def test_of_many_disagreements_the_rare_kinds_are_shown_first(tmp_path: Path, run: RunDirectory) -> None:
    def change(rows: Rows) -> None:
        for row in rows:
            for entry in row["trajectories"]:
                entry["top_p"] = 0.5
        rows[29]["trajectories"][7]["seed"] = 0

    result = verify(altered(merged_path(run), tmp_path / "file.parquet", change))
    assert len(result.disagreements) == MAX_PRINTED and result.disagreements[0].what == "seed"
    assert result.counts == {"top_p": 240, "seed": 1}
    assert result.lines()[-1].startswith("30 questions, 240 trajectories: 241 disagreements (top_p 240, seed 1) (")


def test_what_is_shown_does_nothing_to_a_terminal(tmp_path: Path, run: RunDirectory) -> None:
    def change(rows: Rows) -> None:
        rows[0]["trajectories"][0].update(score_status="\x1b[2J", finish_reason="stop")
        rows[1]["question_id"] = "\x1b[2J\n"

    assert all(line.isprintable() for line in verify(altered(merged_path(run), tmp_path / "f", change)).lines())


def half_a_point(question: Question, trajectories: Sequence[Trajectory]) -> list[float | None]:
    """A custom reward that depends on all its arguments."""
    assert question.gold_answer is not None
    return [0.5 * (t.finish_reason == "length") + t.num_tokens / 1000 + (t.engine == "engine-1") for t in trajectories]


def test_a_reward_of_ones_own_is_called_again_in_its_run_and_elsewhere_when_allowed(
    tmp_path: Path, long_computation: None
) -> None:
    name = "tests.test_verify:half_a_point"
    run = finished(tmp_path / "run", demo_rows(10), scoring={"reward": name})
    assert verify(run.uri).agrees and verify(run.uri).rewards_checked

    def change(rows: Rows) -> None:
        rows[2]["trajectories"][1]["reward"] += 1

    file = altered(merged_path(run), tmp_path / "file.parquet", change)
    not_asked = verify(file)
    assert not_asked.agrees and not_asked.lines()[-2:][0].startswith(
        "rewards were not checked: the file names the function"
    )
    assert "statuses agree" in not_asked.lines()[-1]
    assert [what for _, _, _, what in found(file, reward=name)] == ["reward"]
    shutil.copy(file, merged_path(run))
    assert [what for _, _, _, what in found(run.uri)] == ["reward"]


def doubled(question: Question, trajectories: Sequence[Trajectory]) -> list[float | None]:
    return [None if value is None else 2 * value for value in half_a_point(question, trajectories)]


def test_the_reward_that_is_given_is_the_one_that_counts(tmp_path: Path) -> None:
    """In a run directory the flag was ignored, whatever it named."""
    run = finished(tmp_path / "own", demo_rows(3), scoring={"reward": "tests.test_verify:half_a_point"})
    result = verify(run.uri, "tests.test_verify:doubled")
    assert set(result.counts) == {"reward"}
    assert "recomputed with tests.test_verify:doubled; the file names tests.test_verify:half_a_point" in result.unchecked[0]
    with pytest.raises(ConfigError, match=r"tests\.test_verify:gone cannot be loaded"):
        verify(run.uri, "tests.test_verify:gone")
    plain = finished(tmp_path / "plain", demo_rows(3))
    with pytest.raises(ConfigError, match=r"has no custom reward, so that .*leave out --reward"):
        verify(plain.uri, "tests.test_verify:doubled")


def test_a_reward_that_is_gone_is_said_and_the_rest_is_checked(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", demo_rows(3), scoring={"reward": "tests.test_verify:half_a_point"})

    def forget(metadata: dict[str, Any]) -> None:
        metadata["identity"]["scoring.reward"] = "tests.test_verify:gone"

    table = pq.read_table(merged_path(run))
    metadata = json.loads(table.schema.metadata[b"rollout_ray"])
    forget(metadata)
    pq.write_table(table.replace_schema_metadata({"rollout_ray": json.dumps(metadata)}), merged_path(run))
    result = verify(run.uri)
    assert result.agrees and not result.rewards_checked
    assert "rewards were not checked: scoring.reward tests.test_verify:gone cannot be loaded" in result.lines()[0]


@pytest.mark.parametrize("layout", ["questions", "trajectories"])
def test_a_file_that_another_program_wrote_again_is_verified_in_its_run(tmp_path: Path, layout: str) -> None:
    run = finished(tmp_path / "run", demo_rows(9), output={"output_dir": str(tmp_path / "run"), "layout": layout})
    pd.read_parquet(merged_path(run)).to_parquet(merged_path(run))
    result = verify(run.uri)
    assert result.agrees and "run.json in its folder was used" in result.lines()[0]
    shutil.copy(merged_path(run), tmp_path / "alone.parquet")
    with pytest.raises(LedgerError, match=r"does not name its run .* it has no run\.json\. .* export and report take"):
        verify(str(tmp_path / "alone.parquet"))


def test_it_reads_some_rows_at_a_time(run: RunDirectory, flat: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (1, 3):
        monkeypatch.setattr(merged_module, "READ_QUESTIONS", size)
        monkeypatch.setattr(merged_module, "READ_ROWS", size)
        for one in (run, flat):
            result = verify(one.uri)
            assert result.agrees and (result.questions, result.trajectories) == (30, 240)


def test_what_is_no_merged_file_is_a_clear_error(tmp_path: Path, run: RunDirectory) -> None:
    file = tmp_path / "file.parquet"
    with pytest.raises(LedgerError, match=r"there is no .*nowhere; give a run directory or a merged parquet file"):
        verify(str(tmp_path / "nowhere"))
    with pytest.raises(LedgerError, match=r"there is no .*merged.parquet; the run is not complete"):
        verify(str(tmp_path))
    file.write_bytes(Path(merged_path(run)).read_bytes()[:-100])
    with pytest.raises(VerifyError, match=r"file.parquet cannot be read: "):
        verify(str(file))
    content = bytearray(Path(merged_path(run)).read_bytes())
    content[2000:6000] = bytes(4000)
    file.write_bytes(content)
    with pytest.raises(VerifyError, match=r"file.parquet cannot be read to its end: "):
        verify(str(file))
    pq.write_table(pq.read_table(merged_path(run)).drop_columns(["s_cf"]), file)
    with pytest.raises(VerifyError, match="has no column s_cf"):
        verify(str(file))
    pq.write_table(pq.read_table(merged_path(run)).drop_columns(["gold_answer"]), file)
    with pytest.raises(VerifyError, match="has no column gold_answer, which the run had"):
        verify(str(file))


def test_a_uri_is_as_good_as_a_path(run: RunDirectory) -> None:
    assert verify(f"file://{run.uri}").agrees and verify(f"file://{merged_path(run)}").agrees


def test_the_command_prints_and_returns_what_it_found(tmp_path: Path, run: RunDirectory, rollout: Command) -> None:
    fine = rollout("verify", run.uri)
    assert fine.returncode == 0, fine.stderr
    assert "30 questions, 240 trajectories: all keys, seeds, answers, statuses, rewards agree (" in fine.stdout

    def change(rows: Rows) -> None:
        rows[1]["trajectories"][4]["seed"] = 5

    bad = rollout("verify", altered(merged_path(run), tmp_path / "bad.parquet", change))
    assert bad.returncode == 8 and "maudlin_0, sample 0: seed: stored 5, recomputed " in bad.stdout
    assert "bad.parquet disagrees with its own texts and description in 1 places" in bad.stderr
    assert "8 verify found a disagreement" in rollout("--help").stdout


def test_a_run_of_the_whole_tool_verifies_in_every_layout(tmp_path: Path, local_ray: None) -> None:
    values: dict[str, Any] = {
        "engine": {"backend": "simulated", "simulated": {"sim_tokens_per_second": 1e6, "sim_error_rate": 0.05}},
        "resources": {"replicas": 2},
        "output": {"output_dir": str(tmp_path / "run")},
    }
    for layout in ("questions", "trajectories", "responses"):
        values["output"]["layout"] = layout
        collect(demo_rows(40), RunConfig.model_validate(values))
        result = verify(str(tmp_path / "run"))
        assert result.agrees and (result.questions, result.trajectories) == (40, 320), result.lines()


def test_named_rewards_of_another_file_are_called_when_all_are_allowed(tmp_path: Path) -> None:
    module = "rollout_ray.jobs.examples.trl_rewards"
    scoring = {"rewards": {n: f"{module}:{n}" for n in ("contains_gold", "brevity")}, "reward_weights": {"brevity": 0.1}}
    run = finished(tmp_path / "run", demo_rows(2), scoring=scoring)
    file = str(shutil.copy(merged_path(run), tmp_path / "copy.parquet"))
    named = f"{module}:contains_gold,{module}:brevity"
    assert verify(file).unchecked[0].endswith(f"the file names the functions {named}. Allow the call with --reward {named}")
    result = verify(file, reward=named)
    assert result.agrees and result.rewards_checked and not result.unchecked
    with pytest.raises(ConfigError, match=f"--reward names {module}:brevity, and the rewards of .* Give --reward {named}"):
        verify(file, reward=f"{module}:brevity")


def test_an_error_row_without_its_reason_is_noticed(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", [{"prompt": " ", "gold_answer": "1"}, {"prompt": "a", "gold_answer": "1"}])
    file = altered(merged_path(run), tmp_path / "file.parquet", lambda rows: rows[0]["trajectories"][0].update(error=None))
    assert ("error", 1) in {(what, sum(verify(file).counts.values())) for _, _, _, what in found(file)}
