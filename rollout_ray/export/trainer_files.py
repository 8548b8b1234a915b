"""Stream the rows of several runs into one file for a trainer.

Memory is bounded by a batch of questions and by one row group.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, get_args

import numpy as np
import pyarrow as pa

from rollout_ray.config.schema import LogprobsKind
from rollout_ray.core.errors import ConfigError
from rollout_ray.export.selection import PairType
from rollout_ray.export.targets import Writer, write_lines
from rollout_ray.export.trainer_rows import (
    TRAINER_FORMATS,
    Asked,
    Choice,
    Row,
    TrainerFormat,
    column_values,
    message_type,
    row_schema,
    shared_system_prompt,
)
from rollout_ray.export.wording import are_texts, text_style, worded
from rollout_ray.results.merge import ROW_GROUP_BYTES, write_merged
from rollout_ray.results.merged_file import MergedFile

TABLE_ROWS = 256  # most rows of one Arrow table
TEXTS: dict[TrainerFormat, tuple[str, ...]] = {  # the columns that a trainer learns from
    "dpo": ("prompt", "chosen", "rejected"),
    "sft": ("prompt", "completion"),
    "grpo": ("prompt", "completions"),
}


@dataclass
class Exported:
    """Counts of an export.

    rows: Rows written.
    questions: Questions read.
    used: Questions that gave a row.
    repeated: Rows that an earlier run already had, and that were left out.
    pair_types: dpo rows by type.
    """

    rows: int = 0
    questions: int = 0
    used: int = 0
    repeated: int = 0
    pair_types: Counter[str] = field(default_factory=Counter)

    def line(self, form: str, target: object) -> str:
        """Return the counts in words."""
        if form == "jsonl":
            return f"{self.rows} questions in {target}"
        pairs = ", ".join(f"{kind} {self.pair_types[kind]}" for kind in get_args(PairType))
        kinds = f" ({pairs})" if form == "dpo" else ""
        repeated = f"; {self.repeated} rows were already in an earlier run and were left out" if self.repeated else ""
        return f"{self.rows} {form} rows{kinds} of {self.used} of {self.questions} questions in {target}{repeated}"


class _Repeats:
    """Recognize rows whose texts an earlier run has. It keeps 16 bytes a row."""

    def __init__(self, form: TrainerFormat) -> None:
        self._columns = TEXTS[form]
        self._earlier: set[bytes] = set()
        self._current: set[bytes] = set()

    def begin_run(self) -> None:
        self._earlier |= self._current
        self._current = set()

    def __contains__(self, row: Row) -> bool:
        texts = json.dumps([row[name] for name in self._columns], sort_keys=True, default=str)
        digest = hashlib.blake2b(texts.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        self._current.add(digest)
        return digest in self._earlier


def trainer_writer(
    runs: Sequence[MergedFile], form: TrainerFormat, choice: Choice, as_parquet: bool, done: Exported
) -> Writer:
    """Return a writer of the runs' rows that counts them in `done`."""
    repeats = _Repeats(form)
    as_text, kind = are_texts(runs), _logprobs_kind(runs) if form == "grpo" else None
    rows = chain.from_iterable(_rows(run, form, choice, repeats, done) for run in runs)
    if not as_parquet:
        return partial(write_lines, rows)
    prompts = [run.given_schema.field(run.description.config.data.prompt_key).type for run in runs]
    schema = row_schema(form, None if as_text else message_type(prompts), kind is not None)
    metadata: dict[str, Any] = {"format": form, "runs": [run.description.config.digest() for run in runs]}
    if kind is not None:
        metadata["logprobs"] = kind
    return lambda stream: write_merged(stream, schema, metadata, tables(rows, schema))


def _logprobs_kind(runs: Sequence[MergedFile]) -> LogprobsKind | None:
    """Return what the log-probabilities of the runs are of; None if the runs do not store them.

    Raises:
        ConfigError: The runs differ in it.
    """
    kinds = {run.description.config.output.logprobs if run.tokens else None for run in runs}
    if len(kinds) > 1:
        names = " and ".join(sorted(f"logprobs {kind}" if kind else "no logprobs" for kind in kinds))
        raise ConfigError(f"The runs have {names}. Export them separately.")
    return next(iter(kinds), None)


def tables(rows: Iterator[Row], schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the rows as tables of at most TABLE_ROWS rows and about ROW_GROUP_BYTES of text."""
    held: list[Row] = []
    size = 0
    for row in rows:
        held.append(row)
        size += _text_size(row)
        if len(held) == TABLE_ROWS or size >= ROW_GROUP_BYTES:
            yield pa.Table.from_pylist(held, schema)
            held = []
            size = 0
    if held:
        yield pa.Table.from_pylist(held, schema)


def _text_size(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_text_size, value.values()))
    if isinstance(value, np.ndarray):
        return value.nbytes
    return sum(map(_text_size, value)) if isinstance(value, (list, tuple)) else 8


def _rows(
    run: MergedFile, form: TrainerFormat, choice: Choice, repeats: _Repeats, done: Exported
) -> Iterator[dict[str, Any]]:
    system_prompt, style = shared_system_prompt(run.description.arms), text_style(run.description.config)
    repeats.begin_run()
    number = 0
    for given, stored in run.batches():
        questions = run.question_set(given, [str(s.question_id) for s in stored]).questions()
        has_source = "data_source" in given.column_names
        sources = column_values(given, "data_source") if has_source else ["rollout_ray"] * len(stored)
        for question, one, source in zip(questions, stored, sources, strict=True):
            prompts = one.prompt_token_ids if run.tokens else None
            context = Asked(question, worded(question.prompt, system_prompt, style), number, str(source), prompts)
            found = [] if question.fault else TRAINER_FORMATS[form](context, one.trajectories, choice)
            rows = [row for row in found if row not in repeats]
            number += 1
            done.questions += 1
            done.used += bool(rows)
            done.rows += len(rows)
            done.repeated += len(found) - len(rows)
            done.pair_types.update(row["pair_type"] for row in rows if "pair_type" in row)
            yield from rows
