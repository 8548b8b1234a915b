"""Test report.html as a file: its place, its content and its bounded size.

test_report_page.py tests it in a browser.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rollout_ray import RunConfig, collect
from rollout_ray.core.errors import ConfigError, LedgerError
from rollout_ray.core.records import Completion, Question
from rollout_ray.report.chunks import HEAD_CHARS, MOST_BYTES, TAIL_CHARS, Chunks, cut
from rollout_ray.report.html import report_path, write_report
from rollout_ray.storage.run_directory import RunDirectory
from tests.conftest import Command, demo_rows
from tests.finished_runs import altered, finished, merged_path
from tests.s3_store import BUCKET, running_store


def blocks(path: str | Path) -> dict[str, Any]:
    """Return the page's data blocks, unpacked."""
    found = re.findall(r'<script type="text/plain" id="([\w-]+)">([A-Za-z0-9+/=]*)</script>', Path(path).read_text())
    return {name: json.loads(gzip.decompress(base64.b64decode(content))) for name, content in found}


def simulated(output: str, **sections: Any) -> RunConfig:
    return RunConfig.model_validate(
        {"output": {"output_dir": output, **sections}, "engine": {"backend": "simulated"}, "resources": {"replicas": 2}}
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run of 40 questions under eight arms."""
    return finished(tmp_path_factory.mktemp("report") / "run", demo_rows(40))


def test_the_users_columns_stand_in_the_page_and_those_of_few_values_in_its_index(tmp_path: Path) -> None:
    rows = [{**row, "level": n % 3, "tags": ["a", "b"], "note": f"note {n}"} for n, row in enumerate(demo_rows(60))]
    page = blocks(write_report(finished(tmp_path / "run", rows).uri).path)
    index = page["index"]
    assert index["given"] == {"level": ["0", "1", "2"], "tags": ['["a", "b"]']}
    assert index["columns"]["given:level"] == [0, 1, 2] * 20 and "given:note" not in index["columns"]
    assert page["chunk-0"][4]["columns"] == {"level": "1", "tags": '["a", "b"]', "note": "note 4"}


def test_the_page_shows_the_config_of_the_last_session(tmp_path: Path) -> None:
    """run.json keeps the first session's. A budget of then was shown for a run that had gone on without one."""
    run = finished(tmp_path / "run", demo_rows(3))
    record = run.record() | {
        "config": RunConfig.model_validate({"resources": {"budget": "75s", "replicas": 2}}).model_dump()
    }
    Path(run.path("run.json")).write_text(json.dumps(record))
    last = RunConfig.model_validate({"engine": {"max_num_seqs": 7, "simulated": {"sim_mean_tokens": 9}}}).operational()
    events = [{"event": "begun"}, {"event": "stopped"}, {"event": "resumed", "operational": last}]
    Path(run.path("events.jsonl")).write_text("".join(json.dumps({"time": 1.8e9, **event}) + "\n" for event in events))
    config = blocks(write_report(run.uri).path)["facts"]["config"]
    assert (config["resources"]["budget"], config["resources"]["replicas"]) == (None, None)
    assert blocks(write_report(run.uri).path)["facts"]["reward_rule"].startswith(
        "Reward: 1 for a correct answer, plus 0.5 x"
    )
    assert config["engine"]["max_num_seqs"] == 7 and config["engine"]["simulated"]["sim_mean_tokens"] == 9


def test_a_run_ends_with_its_report(tmp_path: Path, local_ray: None) -> None:
    rollouts = collect(demo_rows(12), simulated(str(tmp_path / "run")))
    page = blocks(tmp_path / "run" / "report.html")
    facts = page["facts"]
    assert (facts["title"], facts["model"], facts["questions"]) == ("run", "demo", 12)
    assert facts["all"]["trajectories"] == rollouts.summary.trajectories == 96
    assert facts["all"]["accuracy"][0] == pytest.approx(sum(arm.correct for arm in rollouts.summary.arms.values()) / 96)
    (session,) = facts["sessions"]
    assert session["finished"] and session["summary"]["session_tokens"] == rollouts.summary.session_tokens
    assert [engine["name"] for engine in session["engines"]] == ["engine-0", "engine-1"]
    assert all([span[0] for span in engine["spans"]][:2] == ["starting", "running"] for engine in session["engines"])
    assert facts["config"]["resources"]["replicas"] == 2


NOTHING = pa.table({"prompt": pa.array([], pa.string())})  # no question, so no engine starts


def test_no_report_is_written_without_scores_or_with_report_false(tmp_path: Path) -> None:
    collect(NOTHING, simulated(str(tmp_path / "none"), report=False))
    collect(NOTHING, simulated(str(tmp_path / "responses"), layout="responses"))
    assert not list(tmp_path.rglob("*.html"))
    with pytest.raises(ConfigError, match="'responses', which holds no scores; run the command of the run with --layout"):
        write_report(str(tmp_path / "responses"))


def test_a_run_in_a_bucket_has_its_report_there(tmp_path: Path) -> None:
    with running_store() as store:
        collect(NOTHING, simulated(f"s3://{BUCKET}/run"))
        (tmp_path / "copy.html").write_bytes(store.objects("run/")["report.html"])
        done = write_report(f"s3://{BUCKET}/run", f"s3://{BUCKET}/other/page.html")
        assert len(store.objects("other/")["page.html"]) == done.size
    facts = blocks(tmp_path / "copy.html")["facts"]
    assert (facts["title"], facts["questions"]) == ("run", 0)
    assert [session["finished"] for session in facts["sessions"]] == [True]


def test_the_page_has_every_trajectory_with_the_terms_of_its_reward(run: RunDirectory) -> None:
    done = write_report(run.uri)
    assert done.path == run.path("report.html") and done.shown == done.questions == 40
    page = blocks(done.path)
    columns = page["index"]["columns"]
    rows = run.open_parquet("merged.parquet").read().to_pylist()
    questions = [q for name, chunk in page.items() if name.startswith("chunk-") for q in chunk]
    assert [q["id"] for q in questions] == [row["question_id"] for row in rows]
    assert columns["n"] == [8] * 40 and columns["number"] == list(range(40))
    rewards = iter(columns["reward"])
    for question, row in zip(questions, rows, strict=True):
        assert question["prompt"] == [["user", row["prompt"]]] and question["gold"] == row["gold_answer"]
        assert question["scores"]["s_wm"] == pytest.approx(row["s_wm"], abs=1e-6)
        for shown, stored in zip(question["trajectories"], row["trajectories"], strict=True):
            assert shown["text"] == stored["full_text"] and next(rewards) == pytest.approx(stored["reward"], abs=1e-6)
            assert (shown["why"] is None) == (stored["finish_reason"] == "error")
            if shown["why"]:
                taken, answer, gold, rule, other = shown["why"]
                assert (answer, gold, other) == (stored["answer"], row["gold_answer"], None) and rule
                assert taken in stored["full_text"]
            terms = shown["terms"]
            assert (terms is None) == (stored["reward"] is None)
            if terms:
                total = terms["correct"] + terms["coherence"] + terms["quality"] + terms["bonus"] - terms["penalty"]
                assert total == pytest.approx(stored["reward"], abs=1e-5)


def test_a_verdict_that_the_grader_would_not_give_today_is_marked(run: RunDirectory, tmp_path: Path) -> None:
    def spoil(rows: list[dict[str, Any]]) -> None:
        for one in rows[0]["trajectories"]:
            one["score_status"] = "timeout"

    copy = altered(merged_path(run), tmp_path / "copy.parquet", spoil)
    trajectories = blocks(write_report(copy).path)["chunk-0"][0]["trajectories"]
    assert {t["why"][4] for t in trajectories if t["why"]} <= {"correct", "incorrect", "no_answer"}


@pytest.mark.parametrize("layout", ["questions", "trajectories"])
def test_both_layouts_give_the_same_page(run: RunDirectory, tmp_path: Path, layout: str) -> None:
    sections = {"output": {"output_dir": str(tmp_path / "run"), "layout": layout}}
    other = finished(tmp_path / "run", demo_rows(40), **sections)
    ours, theirs = blocks(write_report(run.uri).path), blocks(write_report(other.uri).path)
    assert {k: v for k, v in ours.items() if k != "facts"} == {k: v for k, v in theirs.items() if k != "facts"}
    for name in ("all", "groups", "difficulty", "edges", "s_wm"):
        assert ours["facts"][name] == theirs["facts"][name]


def test_a_custom_reward_has_no_terms(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", demo_rows(3), scoring={"reward": "tests.test_collect:reward_by_length"})
    page = blocks(write_report(run.uri).path)
    assert page["facts"]["reward"] == {"custom": "tests.test_collect:reward_by_length"}
    assert {t["terms"] for q in page["chunk-0"] for t in q["trajectories"]} == {None}


def test_the_command_line_writes_reports_of_runs_files_and_rescored_files(
    run: RunDirectory, tmp_path: Path, rollout: Command
) -> None:
    done = rollout("report", run.uri)
    assert done.returncode == 0 and done.stdout.startswith(f"{run.path('report.html')}: 40 of 40 questions"), done.stderr
    done = rollout("report", merged_path(run), str(tmp_path / "a" / "page.html"))
    assert done.returncode == 0 and blocks(tmp_path / "a" / "page.html")["facts"]["questions"] == 40
    copy = altered(merged_path(run), tmp_path / "copy.parquet", lambda rows: None)
    done = rollout("rescore", copy, "--beta", "0")
    (page,) = tmp_path.glob("copy-*-report.html")
    assert done.returncode == 0 and f"report: {page}\n" in done.stdout, done.stderr
    facts = blocks(page)["facts"]
    assert facts["reward"]["beta"] == 0 and facts["rescored_from"] and facts["sessions"] == []
    for arguments, cause in [
        ([run.uri, merged_path(run)], "does not end in .html. Give the report a name that ends in .html."),
        ([str(tmp_path)], "the run is not complete, run its command again"),
    ]:
        refused = rollout("report", *arguments)
        assert refused.returncode != 0 and cause in refused.stderr and "Traceback" not in refused.stderr


def test_the_place_of_a_report() -> None:
    assert report_path("/a/merged.parquet") == "/a/report.html"
    assert report_path("/a/merged-0123456789abcdef.parquet") == "/a/report-0123456789abcdef.html"
    assert report_path("s3://b/a/merged.parquet?region=x") == "s3://b/a/report.html?region=x"
    assert report_path("/a/mine.parquet") == "/a/mine-report.html"


def test_a_driver_that_lost_its_lease_writes_no_report(run: RunDirectory) -> None:
    Path(run.path("report.html")).unlink(missing_ok=True)
    with run.lease():
        for lease in Path(run.uri).glob("lease-*.json"):
            lease.unlink()
        with pytest.raises(LedgerError, match="another driver has taken over"):
            write_report(merged_path(run), run=run)
    assert not Path(run.path("report.html")).exists()


def long(question: Question, sample: int, seed: int, max_tokens: int) -> Completion:
    return Completion(sample, f"first {'x' * 200_000} last\nAnswer: {question.gold_answer}", 5, 900, "stop", "engine-0")


def test_a_long_text_loses_its_middle_and_says_how_much(tmp_path: Path) -> None:
    text = "a" * HEAD_CHARS + "b" * 50_000 + "c" * TAIL_CHARS
    assert cut(text) == "a" * HEAD_CHARS + "\n[... 50000 characters are left out here ...]\n" + "c" * TAIL_CHARS
    assert cut("short \u202e\x00") == "short \\u202e\\x00"
    run = finished(tmp_path / "run", demo_rows(1), draw=long)
    shown = blocks(write_report(run.uri).path)["chunk-0"][0]["trajectories"][0]["text"]
    assert len(shown) < 25_000 and shown.startswith("first") and re.search(r"last\nAnswer: \d+$", shown)


@pytest.mark.parametrize(
    ("most_samples", "most_bytes"), [(640, MOST_BYTES), (10**9, 30_000)], ids=["trajectories", "bytes"]
)
def test_too_many_questions_are_thinned_evenly(tmp_path: Path, most_samples: int, most_bytes: int) -> None:
    from rollout_ray.results.merged_file import MergedFile

    run = finished(tmp_path / "run", demo_rows(400))  # 13 chunks of 32 questions
    with MergedFile(run.uri) as merged:
        chunks = Chunks(merged.description.arms, merged.description.config.scoring, most_samples, most_bytes)
        for given, stored in merged.batches():
            questions = merged.question_set(given, [str(s.question_id) for s in stored]).questions()
            for question, one in zip(questions, stored, strict=True):
                chunks.add(question, one)
        chunks.finish()
    contents, columns = list(chunks.contents()), chunks.index()["columns"]
    assert chunks.stride > 1 and sum(columns["n"]) <= most_samples and sum(map(len, contents)) <= most_bytes
    begins = [n for n in columns["number"] if n % 32 == 0]
    assert begins == list(range(0, 400, 32 * chunks.stride)) and len(contents) == len(begins)
    assert len(columns["reward"]) == sum(columns["n"]) and len(columns["chunk"]) == len(columns["number"])
