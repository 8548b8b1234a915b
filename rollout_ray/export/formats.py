"""Export finished runs: as the seeds' JSONL record, in another layout, or as rows for a trainer.

trainer_files.py writes the trainers' formats, and targets.py the files.
Merged files are only read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa

from rollout_ray.core.errors import ConfigError, LedgerError
from rollout_ray.core.records import NAMED_REWARDS, PROMPT_TOKENS, part_schema
from rollout_ray.data.columns import ID_KEY
from rollout_ray.export.targets import Target, Writer, parse_target, write_lines
from rollout_ray.export.trainer_files import Exported, trainer_writer
from rollout_ray.export.trainer_rows import Choice, TrainerFormat, column_values
from rollout_ray.results.layouts import output_schema, to_layout
from rollout_ray.results.merge import write_merged
from rollout_ray.results.merged_file import MergedFile
from rollout_ray.storage.paths import join_path, real_path, split_path

Columns = Literal["record", "all"]
LayoutFormat = Literal["responses", "trajectories"]
Format = Literal["jsonl", LayoutFormat, TrainerFormat]
FORMATS: tuple[str, ...] = ("jsonl", *get_args(LayoutFormat), *get_args(TrainerFormat))
JSONL_FIELDS = ("full_text", "answer", "reasoning", "num_tokens", "reward", "correct")
RUN_FILES = ("run.json", "merged.parquet", "events.jsonl", "report.html")


@dataclass(frozen=True)
class Source:
    """What an export reads of each run.

    columns: "record" writes the fields of the record; "all" writes every column (format jsonl).
    described_by: Run directory that describes merged files which another program wrote.
    """

    columns: Columns = "record"
    described_by: str | None = None


def export(
    sources: Sequence[str],
    target: str | Path,
    form: Format = "jsonl",
    choice: Choice | None = None,
    source: Source | None = None,
) -> Exported:
    """Write the rows of these runs to one file.

    Rows keep the order of the sources and their questions. A trainer gets no row twice: a row
    whose texts an earlier source has is left out.

    Args:
        sources: Run directories or merged files, as paths or URIs.
        target: Path or URI of the file. targets.ENDINGS lists the endings.
        form: "jsonl" is one object a question: question, gold_answer, and trajectories with JSONL_FIELDS.
        choice: Limits on a trainer's rows.
        source: What to read. None: the record of runs that describe themselves.

    Raises:
        ConfigError: The format does not fit the target's name or the number of sources.
        LedgerError: A source is not a merged run, its layout lacks the format's columns, or the
            target belongs to a run or cannot be written.
        VerifyError: A source is damaged.
    """
    place = parse_target(target)
    done = Exported()
    source = source or Source()
    if source.columns == "all" and form != "jsonl":
        raise ConfigError(f"--columns all belongs to the format jsonl, and the format is {form}. Leave out one of them.")
    with ExitStack() as stack:
        runs = [stack.enter_context(MergedFile(path, source.described_by)) for path in sources]
        for run in runs:
            _refuse_layout(run, form)
            _refuse_own_file(run, place.path)
        if source.columns == "all":
            place.write(_all_columns_writer(runs, place, done))
        else:
            place.write(_writer(runs, place, form, choice or Choice(), done))
    return done


def _all_columns_writer(runs: Sequence[MergedFile], target: Target, done: Exported) -> Writer:
    """Return a writer of one object a question, with every column of the merged file."""
    if target.is_parquet:
        raise ConfigError(
            f"merged.parquet has all columns already. Rename {target.path} to .jsonl, or leave out --columns."
        )
    return partial(write_lines, _counted(chain.from_iterable(map(_whole_rows, runs)), done))


def _whole_rows(run: MergedFile) -> Iterator[dict[str, Any]]:
    for given, stored in run.batches():
        for row, one in zip(_rows(given), stored, strict=True):
            row.setdefault(ID_KEY, one.question_id)
            tokens = {PROMPT_TOKENS: one.prompt_token_ids} if run.tokens else {}
            yield {**row, "trajectories": one.trajectories, **(one.scores[0] if one.scores else {}), **tokens}


def _writer(runs: Sequence[MergedFile], target: Target, form: Format, choice: Choice, done: Exported) -> Writer:
    if form == "jsonl":
        if target.is_parquet:
            raise ConfigError(f"The format jsonl is JSON lines. Rename {target.path} to .jsonl, or give another --format.")
        return partial(write_lines, _counted(chain.from_iterable(map(_records, runs)), done))
    if form == "responses" or form == "trajectories":
        return _layout_writer(runs, form, target.is_parquet, done)
    return trainer_writer(runs, form, choice, target.is_parquet, done)


# The seeds' record


def _records(run: MergedFile) -> Iterator[dict[str, Any]]:
    prompt_key, gold_key = run.description.config.data.prompt_key, run.description.gold_key
    fields = (*JSONL_FIELDS, *(["rewards"] if run.rewards else []))
    for given, stored in run.batches():
        prompts = column_values(given, prompt_key)
        golds = column_values(given, gold_key) if gold_key else [None] * len(stored)
        for prompt, gold, one in zip(prompts, golds, stored, strict=True):
            trajectories = [{name: t[name] for name in fields} for t in one.trajectories]
            yield {"question": prompt, "gold_answer": gold, "trajectories": trajectories}


def _counted(records: Iterable[dict[str, Any]], done: Exported) -> Iterator[dict[str, Any]]:
    for record in records:
        done.rows += 1
        done.questions += 1
        done.used += 1
        yield record


# The merged file in another layout


def _layout_writer(runs: Sequence[MergedFile], layout: LayoutFormat, as_parquet: bool, done: Exported) -> Writer:
    if len(runs) != 1:
        raise ConfigError(f"The format {layout} takes one run, but there are {len(runs)}. Export them one by one.")
    (run,) = runs
    hashed = run.description.hashed_ids
    given_schema = run.given_schema
    if hashed and ID_KEY in given_schema.names:
        given_schema = given_schema.remove(given_schema.get_field_index(ID_KEY))
    schema = output_schema(given_schema, layout, part_schema(run.tokens, run.rewards))
    tables = _layout_tables(run, layout, given_schema.names, done)
    if as_parquet:
        return lambda stream: write_merged(stream, schema, {**run.description.metadata, "layout": layout}, tables)
    rows = (row for table in tables for row in _rows(table))
    return partial(write_lines, map(_with_reward_object, rows) if run.rewards and layout == "trajectories" else rows)


def _with_reward_object(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with its named rewards as an object. Arrow gives a map as a list of pairs."""
    rewards = row[NAMED_REWARDS.name]
    return row if rewards is None else {**row, NAMED_REWARDS.name: dict(rewards)}


def _layout_tables(run: MergedFile, layout: LayoutFormat, columns: Sequence[str], done: Exported) -> Iterator[pa.Table]:
    own = part_schema(run.tokens, run.rewards)
    for given, stored in run.batches():
        rows = [
            {ID_KEY: str(s.question_id), "trajectories": s.trajectories, **(s.scores[0] if s.scores else {})}
            | ({PROMPT_TOKENS: s.prompt_token_ids} if run.tokens else {})
            for s in stored
        ]
        done.questions += len(stored)
        done.used += len(stored)
        for table in to_layout(layout, given.select(columns), pa.Table.from_pylist(rows, own)):
            done.rows += len(table)
            yield table


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    columns = [column_values(table, name) for name in table.column_names]
    return (dict(zip(table.column_names, values, strict=True)) for values in zip(*columns, strict=True))


# What is refused


def _refuse_layout(run: MergedFile, form: Format) -> None:
    if run.layout == "responses" and form != "responses":
        raise LedgerError(
            f"{run.path} has the layout 'responses', which has only texts. Run the same command with --layout questions, "
            "which merges again without generating."
        )


def _refuse_own_file(run: MergedFile, target: str) -> None:
    """Refuse a target that is the source itself or another file of its run."""
    folder, _ = split_path(run.path)
    own = [run.path]
    if run.run is not None:
        own += [join_path(folder, name) for name in RUN_FILES]
    place = real_path(target)
    parts = real_path(join_path(folder, "parts"))
    if place in map(real_path, own) or (run.run is not None and place.startswith(f"{parts}/")):
        raise LedgerError(f"{target} is a file of the run itself. Export to another name.")
