"""Test `rollout export`: every format, from every layout, as parquet and as JSON lines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from rollout_ray.config.arms import WOLFRAM, problem_text
from rollout_ray.config.schema import Layout
from rollout_ray.core.errors import ConfigError, LedgerError
from rollout_ray.core.records import SCORES, TRAJECTORY
from rollout_ray.export.formats import JSONL_FIELDS, Source, export
from rollout_ray.export.trainer_files import tables
from rollout_ray.export.trainer_rows import MESSAGE, TRAINER_FORMATS, Choice, row_schema
from rollout_ray.models.paths import DEMO_FOLDER
from rollout_ray.report.html import write_report
from rollout_ray.results.merge import ROW_GROUP_BYTES, write_merged
from rollout_ray.results.verify import verify
from rollout_ray.storage.run_directory import RunDirectory
from tests.conftest import Command, demo_rows
from tests.finished_runs import CHAT, finished
from tests.s3_store import BUCKET, running_store

QUESTIONS = 30


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Eight arms of right, wrong, truncated, unanswered and refused trajectories."""
    return finished(tmp_path_factory.mktemp("export") / "run", demo_rows(QUESTIONS))


def written(run: RunDirectory, target: Path, form: Any, choice: Choice | None = None) -> list[dict[str, Any]]:
    export([run.uri], target, form, choice)
    if target.suffix == ".parquet":
        return pq.read_table(target).to_pylist()
    return [json.loads(line, parse_constant=pytest.fail) for line in target.read_text().splitlines()]


def test_jsonl_is_the_record_of_the_seeds(run: RunDirectory, tmp_path: Path) -> None:
    records = written(run, tmp_path / "out.jsonl", "jsonl")
    stored = pq.read_table(run.path("merged.parquet")).to_pylist()
    assert records == [
        {
            "question": row["prompt"],
            "gold_answer": row["gold_answer"],
            "trajectories": [{name: t[name] for name in JSONL_FIELDS} for t in row["trajectories"]],
        }
        for row in stored
    ]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_base_models_rows_are_problem_texts(tmp_path: Path, ending: str) -> None:
    """Its tokenizer has no chat template, so nobody could render messages."""
    base = tmp_path / "base"
    shutil.copytree(DEMO_FOLDER, base, ignore=shutil.ignore_patterns("chat_template.jinja", "*.safetensors"))
    run = finished(tmp_path / "run", demo_rows(QUESTIONS), model={"model_path": str(base)}, arms={"arm_set": "samples"})
    stored = {row["question_id"]: row for row in pq.read_table(run.path("merged.parquet")).to_pylist()}
    for form, names in {"dpo": ("chosen", "rejected"), "sft": ("completion",), "grpo": ("completions",)}.items():
        rows = written(run, tmp_path / f"{form}.{ending}", form)
        assert rows and "messages" not in rows[0]
        for row in rows:
            question = stored[row["question_id"]]
            texts = [text for name in names for text in (row[name] if form == "grpo" else [row[name]])]
            assert row["prompt"] == problem_text(question["prompt"], None)
            assert {*texts} <= {t["full_text"] for t in question["trajectories"]}
    other = finished(tmp_path / "chat", demo_rows(3))
    with pytest.raises(ConfigError, match="has a model without a chat template, and another run has one"):
        export([run.uri, other.uri], tmp_path / "both.jsonl", "dpo")


@pytest.mark.parametrize("layout", ["questions", "trajectories"])
def test_all_columns_are_those_of_the_merged_file(tmp_path: Path, layout: Layout) -> None:
    rows = [{**row, "level": n % 3, "source": f"book {n}"} for n, row in enumerate(demo_rows(5))]
    run = finished(tmp_path / "run", rows, output={"output_dir": str(tmp_path / "run"), "layout": layout})
    export([run.uri], tmp_path / "out.jsonl", source=Source(columns="all"))
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [{name: record[name] for name in rows[0]} for record in records] == rows
    assert list(records[0]) == ["prompt", "gold_answer", "level", "source", "question_id", "trajectories", *SCORES]
    assert list(records[0]["trajectories"][0]) == [field.name for field in TRAJECTORY]
    with pytest.raises(ConfigError, match="--columns all belongs to the format jsonl"):
        export([run.uri], tmp_path / "out.jsonl", "dpo", source=Source(columns="all"))
    with pytest.raises(ConfigError, match=r"Rename .* to \.jsonl"):
        export([run.uri], tmp_path / "out.parquet", source=Source(columns="all"))


@pytest.mark.parametrize("layout", ["questions", "trajectories"])
def test_rows_that_pandas_filtered_are_exported_and_reported(tmp_path: Path, layout: Layout) -> None:
    """pandas drops our description of the run, and adds a column for its index."""
    run = finished(tmp_path / "run", demo_rows(9), output={"output_dir": str(tmp_path / "run"), "layout": layout})
    frame = pd.read_parquet(run.path("merged.parquet"))
    kept = frame[frame["prompt"] != frame["prompt"].iloc[0]]
    beside, elsewhere = tmp_path / "run" / "hard.parquet", tmp_path / "hard.parquet"
    kept.to_parquet(beside)
    kept.to_parquet(elsewhere)
    assert export([str(beside)], tmp_path / "a.jsonl").questions == 8
    with pytest.raises(LedgerError, match=r"does not name its run .*export and report take the run directory as --run"):
        export([str(elsewhere)], tmp_path / "b.jsonl")
    export([str(elsewhere)], tmp_path / "b.jsonl", source=Source("all", described_by=run.uri))
    records = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    assert len(records) == 8 and "__index_level_0__" not in records[0] and len(records[0]["trajectories"]) == 8
    assert export([str(elsewhere)], tmp_path / "c.parquet", "grpo", source=Source(described_by=run.uri)).rows > 0
    assert write_report(str(elsewhere), described_by=run.uri).questions == 8


@pytest.mark.parametrize("form", TRAINER_FORMATS)
@pytest.mark.parametrize("kind", ["text", "chat"])
def test_parquet_and_json_lines_hold_the_same_and_a_file_is_like_its_run(tmp_path: Path, kind: str, form: str) -> None:
    rows: list[dict[str, Any]] = demo_rows(QUESTIONS)
    if kind == "chat":
        rows = [
            {"prompt": [{"role": "user", "content": r["prompt"], "name": "Anna"}], "gold_answer": r["gold_answer"]}
            for r in rows
        ]
    run = finished(tmp_path / "run", rows)
    lines, table = (written(run, tmp_path / f"out.{suffix}", form) for suffix in ("jsonl", "parquet"))
    assert len(lines) >= QUESTIONS // 2
    assert [without_nulls(row) for row in table] == [without_nulls(row) for row in lines]
    export([run.path("merged.parquet")], tmp_path / "again.parquet", form)
    assert (tmp_path / "again.parquet").read_bytes() == (tmp_path / "out.parquet").read_bytes()
    prompt = table[0]["prompt"][0]
    assert prompt.get("name") == ("Anna" if kind == "chat" else None)
    columns = {"dpo": {"prompt", "chosen", "rejected"}, "sft": {"prompt", "completion", "messages"}}
    loaded = load_dataset("parquet", data_files=str(tmp_path / "out.parquet"), split="train", cache_dir=str(tmp_path))
    assert columns.get(form, {"prompt", "completions", "rewards"}) <= set(loaded.column_names)
    assert len(loaded) == len(lines)


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def test_the_flat_layout_gives_the_same_rows(run: RunDirectory, tmp_path: Path) -> None:
    output = {"output_dir": str(tmp_path / "flat"), "layout": "trajectories"}
    flat = finished(tmp_path / "flat", demo_rows(QUESTIONS), output=output)
    for form in ("jsonl", *TRAINER_FORMATS):
        assert written(flat, tmp_path / "a.jsonl", form) == written(run, tmp_path / "b.jsonl", form), form


@pytest.mark.parametrize("layout", ["responses", "trajectories"])
def test_another_layout_is_the_merged_file_of_that_layout(run: RunDirectory, tmp_path: Path, layout: Layout) -> None:
    export([run.uri], tmp_path / "out.parquet", layout)
    output = {"output_dir": str(tmp_path / "run"), "layout": layout}
    other = finished(tmp_path / "run", demo_rows(QUESTIONS), output=output)
    assert pq.read_table(tmp_path / "out.parquet").equals(pq.read_table(other.path("merged.parquet")))
    assert verify(str(tmp_path / "out.parquet")).agrees
    assert written(run, tmp_path / "out.jsonl", layout) == pq.read_table(tmp_path / "out.parquet").to_pylist()


def test_choices_and_counts(run: RunDirectory, tmp_path: Path) -> None:
    one, many = (export([run.uri], tmp_path / "x.jsonl", "dpo", Choice(pairs=most)) for most in (1, 100))
    assert one.rows == one.used <= one.questions == QUESTIONS and many.used == one.used
    assert many.rows == many.pair_types.total() > 3 * one.rows
    assert export([run.uri], tmp_path / "x.jsonl", "dpo", Choice(margin=9)).pair_types["coherence"] == 0
    assert many.pair_types["coherence"] > 0
    best = written(run, tmp_path / "x.jsonl", "sft", Choice(best=3))
    assert 1 < max([r["question_id"] for r in best].count(r["question_id"]) for r in best) <= 3
    assert all(row["messages"] == row["prompt"] + row["completion"] for row in best)
    groups = written(run, tmp_path / "x.jsonl", "grpo")
    assert all(len(row["completions"]) == len(row["rewards"]) == len(row["arms"]) >= 2 for row in groups)
    assert None not in [reward for row in groups for reward in row["rewards"]]
    assert {len(row["rewards"]) for row in groups} >= {7, 8}, "a refused draw leaves its group"


def test_several_runs_follow_each_other(run: RunDirectory, tmp_path: Path) -> None:
    other = finished(tmp_path / "chat", [{"prompt": chat, "gold_answer": str(n + 1)} for n, chat in enumerate(CHAT)])
    counts = [export([one.uri], tmp_path / "x.parquet", "dpo").rows for one in (run, other)]
    both = export([run.uri, other.uri], tmp_path / "both.parquet", "dpo")
    assert both.rows == sum(counts) and both.questions == QUESTIONS + len(CHAT)
    assert pq.read_metadata(tmp_path / "both.parquet").num_rows == both.rows


def test_the_prompt_has_the_system_prompt_that_all_arms_share(tmp_path: Path) -> None:
    alike = [{"name": name, "system_prompt": WOLFRAM, "temperature": 1.0} for name in "abcd"]
    for number, arms in enumerate((alike, [*alike, {"name": "e", "temperature": 1.0}])):
        run = finished(tmp_path / str(number), demo_rows(9), arms={"arm_set": "custom", "arm_list": arms})
        prompts = [row["prompt"] for row in written(run, tmp_path / "x.jsonl", "grpo")]
        roles = ["system", "user"] if number == 0 else ["user"]
        assert prompts and all([m["role"] for m in prompt] == roles for prompt in prompts)


def test_nothing_to_prefer_is_an_empty_file_that_loads(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", [{"prompt": " ", "gold_answer": "1"}])
    for form in TRAINER_FORMATS:
        assert written(run, tmp_path / "x.parquet", form) == written(run, tmp_path / "x.jsonl", form) == []


@pytest.mark.parametrize("ending", ["jsonl.gz", "JSONL.GZ", "jsonl.zst", "JSONL", "ndjson", "json"])
def test_the_ending_chooses_the_compression_of_json_lines(run: RunDirectory, tmp_path: Path, ending: str) -> None:
    plain = tmp_path / "plain.jsonl"
    export([run.uri], plain, "sft")
    target = tmp_path / f"out.{ending}"
    export([run.uri], target, "sft")
    kind = {"gz": "gzip", "zst": "zstd"}.get(ending.lower().rpartition(".")[2])
    content = target.read_bytes()
    if kind:
        assert len(content) < plain.stat().st_size / 2
        content = pa.CompressedInputStream(pa.BufferReader(content), kind).read()
    assert content == plain.read_bytes()


def test_an_ending_in_capitals_is_still_parquet(run: RunDirectory, tmp_path: Path) -> None:
    export([run.uri], tmp_path / "x.PARQUET", "dpo")
    export([run.uri], tmp_path / "x.parquet", "dpo")
    assert (tmp_path / "x.PARQUET").read_bytes() == (tmp_path / "x.parquet").read_bytes()


@pytest.mark.parametrize("name", ["x.csv", "x.parquet.gz", "x.arrow", "x.gz", "x"])
def test_an_ending_that_is_not_written_is_refused(run: RunDirectory, tmp_path: Path, name: str) -> None:
    with pytest.raises(
        ConfigError, match=r"has no ending that export can write\. Give a name that ends in \.parquet, \.jsonl"
    ):
        export([run.uri], tmp_path / name, "sft")
    assert list(tmp_path.iterdir()) == []


def test_an_export_goes_to_a_bucket_and_to_a_file_uri(run: RunDirectory, tmp_path: Path) -> None:
    export([run.uri], tmp_path / "out.parquet", "dpo")
    export([run.uri], (tmp_path / "uri.parquet").as_uri(), "dpo")
    assert (tmp_path / "uri.parquet").read_bytes() == (tmp_path / "out.parquet").read_bytes()
    with running_store() as store:
        export([run.uri], f"s3://{BUCKET}/exports/out.parquet", "dpo")
        assert store.objects("exports/")["out.parquet"] == (tmp_path / "out.parquet").read_bytes()


@pytest.mark.parametrize("form", TRAINER_FORMATS)
def test_a_second_equal_run_adds_no_rows(run: RunDirectory, tmp_path: Path, form: Any) -> None:
    equal = finished(tmp_path / "equal", demo_rows(QUESTIONS))
    alone = export([run.uri], tmp_path / "alone.parquet", form)
    both = export([run.uri, equal.uri, run.uri], tmp_path / "both.parquet", form)
    assert pq.read_table(tmp_path / "both.parquet").equals(pq.read_table(tmp_path / "alone.parquet"))
    assert (both.rows, both.repeated) == (alone.rows, 2 * alone.rows) and both.pair_types == alone.pair_types
    assert f"{both.repeated} rows were already in an earlier run and were left out" in both.line(form, "x")


def test_row_groups_of_large_texts_are_bounded_in_bytes() -> None:
    schema = row_schema("grpo", MESSAGE)
    text = "x" * (1 << 20)
    reply = [[{"role": "assistant", "content": text}]] * 4
    row = {"prompt": [{"role": "user", "content": "?"}], "completions": reply, "rewards": [1.0] * 4, "correct": [True] * 4}
    stream = pa.BufferOutputStream()
    write_merged(stream, schema, {}, tables(iter([row] * 100), schema))
    file = pq.ParquetFile(stream.getvalue())
    groups = [file.metadata.row_group(n) for n in range(file.num_row_groups)]
    assert sum(group.num_rows for group in groups) == 100
    assert max(group.num_rows for group in groups) * 4 * len(text) <= 2 * ROW_GROUP_BYTES


def test_what_is_refused(run: RunDirectory, tmp_path: Path) -> None:
    texts = finished(
        tmp_path / "texts", demo_rows(2), output={"output_dir": str(tmp_path / "texts"), "layout": "responses"}
    )
    for form in ("jsonl", "dpo", "trajectories"):
        with pytest.raises(LedgerError, match="Run the same command with --layout questions"):
            export([texts.uri], tmp_path / "x.jsonl", form)
    assert len(written(texts, tmp_path / "y.jsonl", "responses")) == 2
    with pytest.raises(ConfigError, match="or give another --format"):
        export([run.uri], tmp_path / "x.parquet")
    with pytest.raises(ConfigError, match="takes one run, but there are 2"):
        export([run.uri, run.uri], tmp_path / "x.parquet", "responses")
    with pytest.raises(ConfigError, match=r"pairs is 0 and best is 1\. Give a margin of at least 0, and pairs"):
        Choice(pairs=0)
    copy = tmp_path / "copy.parquet"
    copy.write_bytes(Path(run.path("merged.parquet")).read_bytes())
    for target in (copy, Path(run.path("merged.parquet")), Path(run.path("run.json"))):
        with pytest.raises(LedgerError, match="is a file of the run itself"):
            export([run.uri if target != copy else str(copy)], target, "responses")
    assert not (tmp_path / "x.jsonl").exists() and not (tmp_path / "x.parquet").exists()


def test_the_command(run: RunDirectory, tmp_path: Path, rollout: Command) -> None:
    done = rollout("export", run.uri, "pairs.parquet", "--format", "dpo", "--pairs", "2", cwd=tmp_path)
    rows = pq.read_table(tmp_path / "pairs.parquet").num_rows
    assert done.returncode == 0 and done.stdout.startswith(f"{rows} dpo rows (correctness "), done.stderr
    wrong = rollout("export", run.uri, "x.jsonl", "--format", "csv", cwd=tmp_path)
    assert wrong.returncode == 2 and "invalid choice: 'csv'" in wrong.stderr
