"""Test `rollout rescore`: it changes the rewards of stored texts, and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rollout_ray import RunConfig, collect
from rollout_ray.core.errors import ConfigError, IncompleteError, LedgerError, TooManyErrors
from rollout_ray.core.records import Question, Trajectory
from rollout_ray.results.rescore import Rescored, rescore
from rollout_ray.results.verify import verify
from rollout_ray.storage.run_directory import RunDirectory
from tests.conftest import Command, demo_rows
from tests.finished_runs import INPUTS, altered, finished, merged_path


def yaml(folder: Path, text: str) -> Path:
    (folder / "new.yaml").write_text(text)
    return folder / "new.yaml"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """20 questions under eight arms."""
    return finished(tmp_path / "run", demo_rows(20))


@pytest.mark.parametrize("layout", ["questions", "trajectories"])
@pytest.mark.parametrize("kind", INPUTS)
def test_it_gives_what_a_run_with_that_scoring_would_have_given(tmp_path: Path, kind: str, layout: str) -> None:
    rows, data = INPUTS[kind]
    scoring = {"reward_preset": "regime-w-2", "beta": 0.25, "penalty_free_tokens": 100, "s_wm_weights": [0.2, 0.3, 0.5]}
    paths = {
        name: finished(
            tmp_path / name, rows, data=data, output={"output_dir": str(tmp_path / name), "layout": layout}, **sections
        )
        for name, sections in {"first": {}, "second": {"scoring": scoring}}.items()
    }
    done = rescore(paths["first"].uri, file=yaml(tmp_path, json.dumps({"scoring": scoring})))
    expected = pq.read_table(merged_path(paths["second"]))
    table = pq.read_table(done.path)
    assert table.equals(expected) or repr(table.to_pylist()) == repr(expected.to_pylist())  # NaN does not equal NaN
    assert table.schema.equals(expected.schema)
    metadata, wanted = (json.loads(t.schema.metadata[b"rollout_ray"]) for t in (table, expected))
    assert (
        metadata.pop("rescored_from")
        == json.loads(pq.read_schema(merged_path(paths["first"])).metadata[b"rollout_ray"])["config_digest"]
    )
    assert metadata == wanted
    assert verify(done.path).agrees


def test_the_run_stays_as_it_is_and_the_new_file_lies_beside(run: RunDirectory) -> None:
    before = {p: p.read_bytes() for p in Path(run.uri).rglob("*") if p.is_file()}
    done = rescore(run.uri, ["--beta", "0.2", "--alpha", "2"])
    assert done.changed == {"scoring.alpha": (1.0, 2.0), "scoring.beta": (0.5, 0.2)}
    new = Path(done.path)
    assert new.parent == Path(run.uri) and new.name.startswith("merged-") and not new.name.endswith("merged.parquet")
    assert {p: p.read_bytes() for p in Path(run.uri).rglob("*") if p.is_file() and p != new} == before
    assert rescore(run.uri, ["--beta", "0.2", "--alpha", "2"]).path == done.path
    third = rescore(done.path, ["--beta", "0.7"])  # a rescored file can be rescored
    assert Path(third.path).parent == new.parent and third.path != done.path
    assert third.changed == {"scoring.beta": (0.2, 0.7)}


def test_the_summary_is_of_the_new_rewards(run: RunDirectory) -> None:
    done = rescore(run.uri, ["--alpha", "0", "--beta", "0", "--penalty_per_token", "0"])
    assert (done.summary.questions, done.summary.trajectories) == (20, 160)
    assert list(done.summary.arms) == [f"{kind}_{n}" for kind in ("wolfram", "maudlin") for n in range(4)]
    assert all(arm.mean_reward == 0.0 for arm in done.summary.arms.values())
    assert done.summary.null_rewards == done.summary.score_status["error"] > 0


def test_what_a_new_config_leaves_out_stays_as_in_the_run(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", demo_rows(3), scoring={"reward_preset": "regime-w-2", "alpha": 3.0})
    done = rescore(run.uri, ["--beta", "0.1"], {"ROLLOUT_BONUS_ABOVE": "0.5"}, yaml(tmp_path, "scoring: {beta: 9}"))
    assert done.changed == {"scoring.beta": (0.5, 0.1), "scoring.bonus_above": (0.9, 0.5)}
    other = rescore(run.uri, ["--reward_preset", "regime-w"])
    assert other.changed == {
        "scoring.reward_preset": ("regime-w-2", "regime-w"),
        "scoring.gamma": (0.3, 0.0),
        "scoring.bonus": (0.2, 0.0),
    }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seed", "7"], "sampling.seed was 42 and is 7"),
        (["--gold_key", "prompt", "--beta", "1"], 'data.gold_key was null and is "prompt"'),
        (["--arm_set", "greedy"], 'arms.arm_set was "regime-w" and is "greedy"'),
        (["--layout", "trajectories"], 'output.layout was "questions" and is "trajectories"'),
        (
            ["--model_path", "x", "--max_tokens", "5"],
            'model.model_path was "demo" and is "x"; sampling.max_tokens was null',
        ),
    ],
)
def test_a_field_that_is_not_of_scoring_is_refused_by_name(run: RunDirectory, flags: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"rescoring changes only fields of scoring, and {message}"):
        rescore(run.uri, flags)
    assert len(list(Path(run.uri).glob("*.parquet"))) == 1


def test_the_whole_config_of_the_run_may_be_given_again(tmp_path: Path, run: RunDirectory) -> None:
    """The YAML of the run with another beta. Fields of machines and output do not matter."""
    values: dict[str, Any] = RunConfig().model_dump(mode="json")
    values["scoring"]["beta"] = 0.0
    values["resources"]["replicas"], values["data"]["dataset"] = 8, "elsewhere.parquet"
    done = rescore(run.uri, file=yaml(tmp_path, json.dumps(values)))
    assert done.changed == {"scoring.beta": (0.5, 0.0)}


def test_bad_values_are_named_as_in_a_run(run: RunDirectory) -> None:
    with pytest.raises(ConfigError, match=r"scoring\.s_wm_weights|s_wm_weights must sum to 1"):
        rescore(run.uri, ["--s_wm_weights", "[1, 1, 1]"])
    with pytest.raises(ConfigError, match=r"--betta is not a flag; did you mean --beta\?"):
        rescore(run.uri, ["--betta", "1"])


def test_the_place_of_the_new_file_can_be_given_and_nothing_is_overwritten(tmp_path: Path, run: RunDirectory) -> None:
    target = str(tmp_path / "new.parquet")
    assert rescore(run.uri, ["--beta", "0"], output=target).path == target and verify(target).agrees
    content = Path(target).read_bytes()
    for taken in (target, merged_path(run)):
        with pytest.raises(ConfigError, match=f"{taken} exists already; give another --output"):
            rescore(run.uri, ["--beta", "1"], output=taken)
    assert Path(target).read_bytes() == content
    with pytest.raises(LedgerError, match=r"new\.parquet cannot be written "):
        rescore(run.uri, output=f"{target}/below-a-file.parquet")
    as_uri = rescore(f"file://{run.uri}", ["--beta", "4"], output=f"file://{tmp_path}/uri.parquet")
    assert verify(as_uri.path).agrees and (tmp_path / "uri.parquet").exists()


def test_a_file_without_its_run_is_rescored_too(tmp_path: Path, run: RunDirectory) -> None:
    shutil.copy(merged_path(run), tmp_path / "my-run.parquet")
    shutil.rmtree(run.uri)
    done = rescore(str(tmp_path / "my-run.parquet"), ["--alpha", "0.5"])
    assert Path(done.path).parent == tmp_path and Path(done.path).name.startswith("my-run-")
    assert verify(done.path).agrees


@pytest.mark.parametrize("rows", [slice(0, 1), slice(5, 9)])
def test_an_incomplete_file_is_refused_and_nothing_is_written(tmp_path: Path, run: RunDirectory, rows: slice) -> None:
    broken = altered(merged_path(run), tmp_path / "broken.parquet", lambda all_rows: all_rows.__delitem__(rows))
    with pytest.raises(IncompleteError, match=r"broken.parquet cannot be rescored: \d+ rows where 20 are due; `rollout v"):
        rescore(broken)
    short = altered(merged_path(run), tmp_path / "broken.parquet", lambda all_rows: all_rows[9]["trajectories"].pop())
    with pytest.raises(IncompleteError, match=r"question \w+ does not have every trajectory once"):
        rescore(short)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken.parquet", "run"]


def test_texts_alone_cannot_be_rescored(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", demo_rows(3), output={"output_dir": str(tmp_path / "run"), "layout": "responses"})
    with pytest.raises(ConfigError, match="has the layout 'responses', which holds no rewards"):
        rescore(run.uri)


def shortest(question: Question, trajectories: Sequence[Trajectory]) -> list[float | None]:
    """A custom reward for the tests."""
    return [1.0 if t.num_tokens == min(u.num_tokens for u in trajectories) else None for t in trajectories]


def failing(question: Question, trajectories: Sequence[Trajectory]) -> list[float | None]:
    """A custom reward with an error."""
    raise ZeroDivisionError("no")


def test_rewards_of_ones_own(tmp_path: Path, run: RunDirectory, long_computation: None) -> None:
    name = "tests.test_rescore:shortest"
    done = rescore(run.uri, ["--reward", name], output=str(tmp_path / "own.parquet"))
    assert 20 <= sum(arm.rewarded for arm in done.summary.arms.values()) < 160
    assert verify(done.path, reward=name).rewards_checked
    with pytest.raises(ConfigError, match=f"the file names the function {name} for its rewards; allow it with --reward"):
        rescore(done.path)
    back = rescore(done.path, file=yaml(tmp_path, "scoring: {reward: null}"))
    assert pq.read_table(back.path).equals(pq.read_table(merged_path(run)))
    with pytest.raises(TooManyErrors, match=r"the reward failing fails: ZeroDivisionError\('no'\). Correct the function"):
        rescore(run.uri, ["--reward", "tests.test_rescore:failing"])


def failing_at_first(question: Question, trajectories: Sequence[Trajectory]) -> list[float]:
    return [1.0 / question.row["n"] for _ in trajectories]


def test_named_rewards_may_all_fail_in_the_first_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout_ray.results.merged_file.READ_QUESTIONS", 2)
    rows = [{**row, "n": max(0, n - 1)} for n, row in enumerate(demo_rows(4))]
    scoring = {"rewards": {"x": "tests.test_rescore:failing_at_first"}, "max_error_share": 1.0}
    run = finished(tmp_path / "run", rows, scoring=scoring)
    done = rescore(run.uri, ["--max_error_share", "1"])
    assert pq.read_table(done.path).equals(pq.read_table(merged_path(run)))


def test_texts_are_graded_anew(tmp_path: Path, run: RunDirectory) -> None:
    """A grade that timed out in the run is tried again."""

    def time_out(rows: list[dict[str, Any]]) -> None:
        for entry in rows[2]["trajectories"]:
            entry.update(score_status="timeout", correct=None, reward=None)

    before = altered(merged_path(run), tmp_path / "before.parquet", time_out)
    done = rescore(before)
    assert pq.read_table(done.path).equals(pq.read_table(merged_path(run)))
    assert done.verdicts_changed == 8 and len(done.examples) == 8
    assert "timeout -> " in done.examples[0]


def test_a_run_itself_still_refuses_another_scoring(tmp_path: Path, local_ray: None) -> None:
    values: dict[str, Any] = {
        "engine": {"backend": "simulated", "simulated": {"sim_tokens_per_second": 1e6}},
        "resources": {"replicas": 1},
        "output": {"output_dir": str(tmp_path / "run")},
    }
    collect(demo_rows(10), RunConfig.model_validate(values))
    new: Rescored = rescore(str(tmp_path / "run"), ["--beta", "0.1"])
    assert verify(new.path).agrees and verify(str(tmp_path / "run")).agrees
    values["scoring"] = {"beta": 0.1}
    with pytest.raises(LedgerError, match=r"scoring\.beta was 0\.5 and is 0\.1"):
        collect(demo_rows(10), RunConfig.model_validate(values))
    values["output"]["output_dir"] = str(tmp_path / "drawn")
    drawn = collect(demo_rows(10), RunConfig.model_validate(values)).table()
    again = pq.read_table(new.path)
    assert without_engine(again) == without_engine(drawn)


def without_engine(table: pa.Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.to_pylist()
    for row in rows:
        for entry in row["trajectories"]:
            del entry["engine"]
    return rows


def test_the_command(tmp_path: Path, run: RunDirectory, rollout: Command) -> None:
    done = rollout("rescore", run.uri, "--config", str(yaml(tmp_path, "scoring: {beta: 0.25}")), "--alpha=2")
    assert done.returncode == 0, done.stderr
    assert "scoring.alpha: 1.0 -> 2.0\nscoring.beta: 0.5 -> 0.25\n" in done.stdout
    assert "20 questions, 160 trajectories" in done.stdout and "wolfram_3" in done.stdout
    assert verify(done.stdout.splitlines()[-1]).agrees
    again = rollout("rescore", run.uri, "--output", str(tmp_path / "same.parquet"))
    assert again.stdout.startswith("no field differs from the run's. The texts were graded again.\n")
    refused = rollout("rescore", run.uri, "--seed", "3")
    assert refused.returncode == 2 and "sampling.seed was 42 and is 3" in refused.stderr
    assert "name the run directory or file before the flags" in rollout("rescore", "--beta", "3", run.uri).stderr
