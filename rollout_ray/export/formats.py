"""Hands finished runs on: as the seeds' JSONL record, in another layout, or as the rows that a trainer reads.

Owns the formats' names, files and streaming. Which trajectories a trainer gets is preferences.py's, and the columns that
it reads are trainer_rows.py's. It reads merged files only, and changes none.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, Literal, get_args

import pyarrow as pa

from rollout_ray.core.errors import ConfigError, LedgerError
from rollout_ray.core.records import PART_SCHEMA
from rollout_ray.data.cells import NotText, cell_values
from rollout_ray.data.columns import ID_KEY
from rollout_ray.export.selection import PairType
from rollout_ray.export.trainer_rows import (
    TRAINER_FORMATS,
    Choice,
    TrainerFormat,
    asked,
    message_type,
    row_schema,
    shared_system_prompt,
)
from rollout_ray.results.merge import output_schema, to_layout, write_merged
from rollout_ray.results.merged_file import MergedFile
from rollout_ray.storage.files import write_whole

LayoutFormat = Literal["responses", "trajectories"]
Format = Literal["jsonl", LayoutFormat, TrainerFormat]
FORMATS: tuple[str, ...] = ("jsonl", *get_args(LayoutFormat), *get_args(TrainerFormat))
JSONL_FIELDS = ("full_text", "answer", "reasoning", "num_tokens", "reward", "correct")
TABLE_ROWS = 256  # trainer rows made into one table
Writer = Callable[[IO[bytes]], Any]


@dataclass
class Exported:
    """What was written: `rows`, how many of them are preference pairs of each type, the `questions` read, and those that
    were `used`, which gave a row or more."""

    rows: int = 0
    questions: int = 0
    used: int = 0
    pair_types: Counter[str] = field(default_factory=Counter)

    def line(self, form: str, target: str | Path) -> str:
        """The counts in words."""
        if form == "jsonl":
            return f"{self.rows} questions in {target}"
        pairs = ", ".join(f"{kind} {self.pair_types[kind]}" for kind in get_args(PairType))
        kinds = f" ({pairs})" if form == "dpo" else ""
        return f"{self.rows} {form} rows{kinds} of {self.used} of {self.questions} questions in {target}"


def export(sources: Sequence[str], target: str | Path, form: Format = "jsonl", choice: Choice | None = None) -> Exported:
    """Writes what `form` takes from these runs (run directories or merged files, local or URIs) to the local file `target`.

    A target whose name ends in .parquet is a parquet file, any other JSON lines. It appears when it is whole. Rows are in
    the order of the sources and their questions; memory is bounded by a batch of questions. `jsonl` is one object a
    question: {"question", "gold_answer", "trajectories": [{"full_text", "answer", "reasoning", "num_tokens", "reward",
    "correct"}]}.

    In JSON a value that JSON has not (bytes that are no text, NaN) is null. Raises ConfigError where the format does not go
    with the target's name or the number of sources, LedgerError where a source is no merged run or its layout lacks what
    the format needs, or the target belongs to a run or cannot be written, and VerifyError where a source is torn.
    """
    as_parquet = str(target).endswith(".parquet")
    done = Exported()
    with ExitStack() as stack:
        runs = [stack.enter_context(MergedFile(source)) for source in sources]
        for run in runs:
            _refuse_layout(run, form)
            _refuse_own_file(run, target)
        if form == "jsonl" and as_parquet:
            raise ConfigError("the format jsonl is JSON lines; name the output .jsonl, or give another --format")
        write: Writer
        if form == "jsonl":
            write = partial(_write_lines, _counted(chain.from_iterable(map(_records, runs)), done))
        elif form == "responses" or form == "trajectories":
            write = _layout_writer(runs, form, as_parquet, done)
        else:
            write = _trainer_writer(runs, form, choice or Choice(), as_parquet, done)
        try:
            write_whole(target, write)
        except OSError as error:
            raise LedgerError(f"{target} cannot be written: {error}; give another place") from error
    return done


def _write_lines(rows: Iterable[dict[str, Any]], stream: IO[bytes]) -> None:
    for row in rows:
        stream.write(json.dumps(_json_value(row), ensure_ascii=False, allow_nan=False, default=str).encode() + b"\n")


# The seeds' record


def _records(run: MergedFile) -> Iterator[dict[str, Any]]:
    prompt_key, gold_key = run.description.config.data.prompt_key, run.description.gold_key
    for given, stored in run.batches():
        prompts = _values(given, prompt_key)
        golds = _values(given, gold_key) if gold_key else [None] * len(stored)
        for prompt, gold, one in zip(prompts, golds, stored, strict=True):
            trajectories = [{name: t[name] for name in JSONL_FIELDS} for t in one.trajectories]
            yield {"question": prompt, "gold_answer": gold, "trajectories": trajectories}


def _counted(records: Iterable[dict[str, Any]], done: Exported) -> Iterator[dict[str, Any]]:
    for record in records:
        done.rows, done.questions, done.used = done.rows + 1, done.questions + 1, done.used + 1
        yield record


# The merged file in another layout


def _layout_writer(runs: Sequence[MergedFile], layout: LayoutFormat, as_parquet: bool, done: Exported) -> Writer:
    if len(runs) != 1:
        raise ConfigError(f"the format {layout} takes one run, and {len(runs)} were given; export them one by one")
    (run,) = runs
    hashed = run.description.hashed_ids
    given_schema = run.given_schema
    if hashed and ID_KEY in given_schema.names:
        given_schema = given_schema.remove(given_schema.get_field_index(ID_KEY))
    schema = output_schema(given_schema, layout)
    tables = _layout_tables(run, layout, given_schema.names, done)
    if as_parquet:
        return lambda stream: write_merged(stream, schema, {**run.description.metadata, "layout": layout}, tables)
    return partial(_write_lines, (row for table in tables for row in _rows(table)))


def _layout_tables(run: MergedFile, layout: LayoutFormat, columns: Sequence[str], done: Exported) -> Iterator[pa.Table]:
    for given, stored in run.batches():
        rows = [
            {ID_KEY: str(s.question_id), "trajectories": s.trajectories, **(s.scores[0] if s.scores else {})}
            for s in stored
        ]
        done.questions, done.used = done.questions + len(stored), done.used + len(stored)
        for table in to_layout(layout, given.select(columns), pa.Table.from_pylist(rows, PART_SCHEMA)):
            done.rows += len(table)
            yield table


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    columns = [_values(table, name) for name in table.column_names]
    return (dict(zip(table.column_names, values, strict=True)) for values in zip(*columns, strict=True))


# What trainers read


def _trainer_writer(
    runs: Sequence[MergedFile], form: TrainerFormat, choice: Choice, as_parquet: bool, done: Exported
) -> Writer:
    rows = chain.from_iterable(_trainer_rows(run, form, choice, done) for run in runs)
    if not as_parquet:
        return partial(_write_lines, rows)
    prompts = [run.given_schema.field(run.description.config.data.prompt_key).type for run in runs]
    schema = row_schema(form, message_type(prompts))
    metadata = {"format": form, "runs": [run.description.config.digest() for run in runs]}
    return lambda stream: write_merged(stream, schema, metadata, _tables(rows, schema))


def _tables(rows: Iterator[dict[str, Any]], schema: pa.Schema) -> Iterator[pa.Table]:
    while some := list(islice(rows, TABLE_ROWS)):
        yield pa.Table.from_pylist(some, schema)


def _trainer_rows(run: MergedFile, form: TrainerFormat, choice: Choice, done: Exported) -> Iterator[dict[str, Any]]:
    system_prompt = shared_system_prompt(run.description.arms)
    number = 0
    for given, stored in run.batches():
        questions = run.question_set(given, [str(s.question_id) for s in stored]).questions()
        named = "data_source" in given.column_names
        sources = _values(given, "data_source") if named else ["rollout_ray"] * len(stored)
        for question, one, source in zip(questions, stored, sources, strict=True):
            context = asked(question, system_prompt, number, str(source))
            rows = [] if question.fault else TRAINER_FORMATS[form](context, one.trajectories, choice)
            number += 1
            done.questions, done.used, done.rows = done.questions + 1, done.used + bool(rows), done.rows + len(rows)
            done.pair_types.update(row["pair_type"] for row in rows if "pair_type" in row)
            yield from rows


# Values


def _values(table: pa.Table, name: str) -> list[Any]:
    return [value for chunk in table.column(name).chunks for value in cell_values(chunk)]


def _json_value(value: Any) -> Any:
    """`value` with null for what JSON has no value for."""
    if isinstance(value, dict):
        return {key: _json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None
    return None if isinstance(value, NotText) else value


# What is refused


def _refuse_layout(run: MergedFile, form: Format) -> None:
    if run.layout == "responses" and form != "responses":
        raise LedgerError(
            f"{run.path} has the layout 'responses', which holds texts alone; run the same command with --layout "
            "questions, which merges again without generating"
        )


def _refuse_own_file(run: MergedFile, target: str | Path) -> None:
    """An export must not take the place of what it is made from, nor of another file of the run."""
    if "://" in run.path and not run.path.startswith("file://"):
        return
    place = Path(os.path.realpath(target))
    source = Path(os.path.realpath(run.path.removeprefix("file://")))
    own = [source]
    if run.run is not None:
        own += [source.parent / name for name in ("run.json", "merged.parquet", "events.jsonl", "report.html")]
    if place in own or (run.run is not None and (source.parent / "parts") in (place, *place.parents)):
        raise LedgerError(f"{target} is a file of the run itself; export to another name")
