"""Reads a merged file back: what it says about its run, and its rows as questions with their trajectories.

Owns where such a file is, and the streaming of its layouts into one form. It checks nothing that is written in a row
(verify.py does) and computes no score.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from rollout_ray.config.schema import DataConfig, Layout
from rollout_ray.config.templates import columns_of
from rollout_ray.core.errors import ConfigError, LedgerError, VerifyError
from rollout_ray.core.records import METADATA, PART_SCHEMA, SCORES, TRAJECTORY
from rollout_ray.data.columns import ID_KEY
from rollout_ray.data.question_set import QuestionSet, load_questions
from rollout_ray.results.metadata import Description, read_description
from rollout_ray.storage.files import row_batches
from rollout_ray.storage.paths import join_path, split_path
from rollout_ray.storage.run_directory import RunDirectory

MERGED = "merged.parquet"
READ_QUESTIONS, READ_ROWS = 128, 2048  # rows held at a time of a file with one row a question, or a trajectory
_FIELDS = tuple(f.name for f in TRAJECTORY)


@dataclass(frozen=True, slots=True)
class StoredQuestion:
    """One question as a file has it: trajectories as dicts, and each distinct set of s_end, s_path, s_cf, s_wm (one,
    unless someone altered a row of the long form). `uneven` names the columns that differ between its rows."""

    question_id: Any
    trajectories: list[dict[str, Any]]
    scores: list[dict[str, Any]]
    uneven: tuple[str, ...] = ()


@dataclass
class MergedFile:
    """A merged file: the merged.parquet of a run directory, or any by its own path or URI. Use as a context manager.

    `run` is the run directory that it stands in as merged.parquet, None elsewhere; `note` says in words where the
    description was found in run.json instead of the file. Raises LedgerError where there is no such file, or nothing
    says what run it is of, and VerifyError where it cannot be read.
    """

    path: str
    run: RunDirectory | None = field(init=False)
    layout: Layout = field(init=False)
    description: Description = field(init=False)
    note: str | None = field(init=False, default=None)
    _file: pq.ParquetFile = field(init=False, repr=False)

    def __post_init__(self) -> None:
        filesystem, inner, self.path = _locate(self.path)
        try:
            self._file = pq.ParquetFile(inner, filesystem=filesystem, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise VerifyError(
                f"{self.path} cannot be read: {error}; run the command of the run again to merge again"
            ) from error
        folder, name = split_path(self.path)
        self.run = RunDirectory(folder) if name == MERGED else None
        self.layout = _layout_of(self.schema, self.path)
        self.description = self._described()
        if missing := [key for key in self.input_keys() if self.input_column(key) not in self.schema.names]:
            raise VerifyError(f"{self.path} has no column {', '.join(missing)}, which the run had; merge again")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    @property
    def schema(self) -> pa.Schema:
        return self._file.schema_arrow

    def _described(self) -> Description:
        metadata = json.loads((self.schema.metadata or {}).get(METADATA, b"{}"))
        if "dataset" in metadata:
            return read_description(metadata)
        missing = f"{self.path} does not say what run it is of (was it written by another program?)"
        if self.run is None:
            raise LedgerError(f"{missing}; give the run directory")
        try:
            record = self.run.record()
        except LedgerError as error:
            raise LedgerError(f"{missing}, and beside it {error}") from error
        self.note = f"{missing}: run.json beside it was taken"
        return read_description(record)

    @property
    def given_schema(self) -> pa.Schema:
        """The schema of the tables that `batches` gives."""
        return self._given(self.schema.remove_metadata().empty_table()).schema

    @property
    def num_rows(self) -> int:
        rows: int = self._file.metadata.num_rows
        return rows

    def require_scores(self) -> None:
        """Raises ConfigError where the layout holds texts alone."""
        if self.layout == "responses":
            raise ConfigError(
                f"{self.path} has the layout 'responses', which holds no scores; run the command of the run with "
                "--layout questions, which merges again without generating"
            )

    def input_keys(self) -> list[str]:
        """The columns of the input that make up a question: the prompt, if there was one the gold answer, and what a
        prompt template names."""
        data = self.description.config.data
        named = columns_of(data.prompt_template) if data.prompt_template else ()
        found = [name for name in sorted(named) if self.input_column(name) in self.schema.names]
        return list(dict.fromkeys(key for key in (data.prompt_key, self.description.gold_key, *found) if key))

    def question_set(self, given: pa.Table, ids: Sequence[str] | None) -> QuestionSet:
        """The questions of a table that `batches` gave, under these ids; without any, under hashes of their content."""
        table = given.select([key for key in dict.fromkeys(self.input_keys()) if key != ID_KEY])
        if ids is not None:
            table = table.append_column(ID_KEY, pa.array(ids, pa.string()))
        data, gold_key = self.description.config.data, self.description.gold_key
        own = {"prompt_key": data.prompt_key, "prompt_template": data.prompt_template, "gold_key": gold_key}
        return load_questions(table, DataConfig(**own, id_key=None if ids is None else ID_KEY))

    def _given(self, table: pa.Table) -> pa.Table:
        """The input's columns of these rows, under the input's names, and question_id."""
        written = {"questions": ["trajectories", *SCORES], "trajectories": [*_FIELDS, *SCORES], "responses": ["responses"]}
        given = table.drop_columns(written[self.layout])
        names = {self.input_column(name): name for name in _FIELDS if name in self.description.columns}
        return given.rename_columns([names.get(name, name) for name in given.column_names])

    def input_column(self, name: str) -> str:
        """The name in this file of a column of the input."""
        return f"input_{name}" if self.layout == "trajectories" and name in _FIELDS else name

    def batches(self) -> Iterator[tuple[pa.Table, list[StoredQuestion]]]:
        """The questions in the order of the file, some at a time: their input columns under the input's names and
        `question_id` as a table of one row a question, and their trajectories.

        A file of the `responses` layout gives its lists of texts as trajectories with nothing but `full_text`. Raises
        VerifyError where the file is torn.
        """
        read = {"questions": self._nested_rows, "trajectories": self._flat_rows, "responses": self._responses}[self.layout]
        try:
            yield from read()
        except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
            raise VerifyError(f"{self.path} cannot be read to its end: {error}; merge again") from error

    def mean_lengths(self, wanted: Set[str]) -> dict[str, float]:
        """Mean output length in tokens of the `wanted` questions that the file has; reads nothing but lengths.

        Raises ConfigError for a file of the `responses` layout, and VerifyError where the file is torn.
        """
        leaves = [self._file.schema.column(n).path for n in range(len(self._file.schema))]
        paths = {"questions": [p for p in leaves if p.startswith("trajectories.") and p.endswith(".num_tokens")]}
        paths |= {"trajectories": ["num_tokens"], "responses": []}
        if not paths[self.layout]:
            raise ConfigError(
                f"{self.path} has the layout 'responses', which holds no lengths; give a run of another layout"
            )
        column = "trajectories" if self.layout == "questions" else "num_tokens"
        sums: Counter[str] = Counter()
        counts: Counter[str] = Counter()
        try:
            for batch in row_batches(self._file, READ_ROWS, [ID_KEY, *paths[self.layout]]):
                for name, value in zip(_ids(batch.column(ID_KEY)), batch.column(column).to_pylist(), strict=True):
                    if (question_id := str(name)) in wanted:
                        lengths = [value] if isinstance(value, int) else [one["num_tokens"] for one in value]
                        sums[question_id] += sum(lengths)
                        counts[question_id] += len(lengths)
        except (pa.ArrowException, OSError) as error:
            raise VerifyError(f"{self.path} cannot be read to its end: {error}; merge again") from error
        return {question_id: sums[question_id] / counts[question_id] for question_id in sums if counts[question_id]}

    def _nested_rows(self) -> Iterator[tuple[pa.Table, list[StoredQuestion]]]:
        for batch in row_batches(self._file, READ_QUESTIONS):
            table = pa.Table.from_batches([batch])
            ids = _ids(table.column(ID_KEY))
            lists = table.column("trajectories").to_pylist()
            scores = table.select(SCORES).to_pylist()
            stored = [StoredQuestion(i, t or [], [s]) for i, t, s in zip(ids, lists, scores, strict=True)]
            yield self._given(table), stored

    def _flat_rows(self) -> Iterator[tuple[pa.Table, list[StoredQuestion]]]:
        """Rows that follow each other under one id are one question."""
        held = self.schema.empty_table()
        for batch in row_batches(self._file, READ_ROWS):
            held = pa.concat_tables([held, pa.Table.from_batches([batch])]).combine_chunks()
            ids = _ids(held.column(ID_KEY))
            last = next((n for n in range(len(ids) - 1, 0, -1) if ids[n] != ids[n - 1]), 0)
            if last:  # the last question may go on in the next batch
                yield self._grouped(held.slice(0, last), ids[:last])
                held = held.slice(last)
        if held.num_rows:
            yield self._grouped(held, _ids(held.column(ID_KEY)))

    def _grouped(self, table: pa.Table, ids: Sequence[Any]) -> tuple[pa.Table, list[StoredQuestion]]:
        begins = [n for n in range(len(ids)) if n == 0 or ids[n] != ids[n - 1]]
        rows = table.select(_FIELDS).to_pylist()
        scores = table.select(SCORES).to_pylist()
        changes = {key: _changes(table.column(self.input_column(key))) for key in self.input_keys()}
        stored = []
        for begin, end in zip(begins, [*begins[1:], len(ids)], strict=True):
            distinct: list[dict[str, Any]] = []
            for row in scores[begin:end]:
                if row not in distinct:
                    distinct.append(row)
            uneven = tuple(key for key, change in changes.items() if any(change[begin + 1 : end]))
            stored.append(StoredQuestion(ids[begin], rows[begin:end], distinct, uneven))
        return self._given(table).take(begins), stored

    def _responses(self) -> Iterator[tuple[pa.Table, list[StoredQuestion]]]:
        key = self.description.config.data.id_key or ID_KEY
        for batch in row_batches(self._file, READ_QUESTIONS):
            table = pa.Table.from_batches([batch])
            given = self._given(table)
            ids = _ids(given.column(key)) if key in given.column_names else [None] * given.num_rows
            lists = [[{"full_text": text} for text in texts or []] for texts in table.column("responses").to_pylist()]
            yield given, [StoredQuestion(i, t, []) for i, t in zip(ids, lists, strict=True)]


def _ids(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Ids as the run knew them: bytes that an input had for ids are text there."""
    return [value.decode() if isinstance(value, bytes) else value for value in column.to_pylist()]


def _changes(column: pa.ChunkedArray) -> list[bool]:
    """Whether each value differs from the one before it; the first does not."""
    after, before = column.slice(1), column.slice(0, max(0, len(column) - 1))
    try:
        unequal = pc.fill_null(pc.not_equal(after, before), False)
        if pa.types.is_floating(column.type):  # the same NaN is no change
            unequal = pc.and_not(unequal, pc.fill_null(pc.and_(pc.is_nan(after), pc.is_nan(before)), False))
    except pa.ArrowNotImplementedError:  # chat messages
        return [False, *(repr(a) != repr(b) for a, b in zip(after.to_pylist(), before.to_pylist(), strict=True))]
    return [False, *pc.or_(unequal, pc.xor(after.is_null(), before.is_null())).to_pylist()]


def _layout_of(schema: pa.Schema, path: str) -> Layout:
    """The layout that the columns show. Raises VerifyError where they show none, or one is missing."""
    names = set(schema.names)
    if "responses" in names and "trajectories" not in names:
        return "responses"
    nested = "trajectories" in names
    wanted = {ID_KEY, *SCORES, *(PART_SCHEMA.names if nested else _FIELDS)}
    if nested:
        entry = schema.field("trajectories").type
        inside = (
            {f.name for f in entry.value_type}
            if pa.types.is_list(entry) and pa.types.is_struct(entry.value_type)
            else set()
        )
        names |= {f"trajectories.{name}" for name in inside}
        wanted |= {f"trajectories.{name}" for name in _FIELDS}
    if missing := sorted(wanted - names):
        raise VerifyError(
            f"{path} has no column {', '.join(missing)}; it is no merged file, or one was removed: merge again"
        )
    return "questions" if nested else "trajectories"


def _locate(path: str) -> tuple[fs.FileSystem, str, str]:
    """File system, path on it and full path of a merged file, which `path` names, or the directory that it is in."""
    path = path if "://" in path else os.path.abspath(path)
    filesystem, inner = fs.FileSystem.from_uri(path) if "://" in path else (fs.LocalFileSystem(), path)
    try:
        kind = filesystem.get_file_info(inner).type
        if kind == fs.FileType.Directory:
            inner, path = f"{inner}/{MERGED}", join_path(path, MERGED)
            if filesystem.get_file_info(inner).type == fs.FileType.NotFound:
                raise LedgerError(f"there is no {path}; the run is not complete, run its command again")
    except OSError as error:
        raise LedgerError(f"{path} cannot be read: {error}") from error
    if kind == fs.FileType.NotFound:
        raise LedgerError(f"there is no {path}; give a run directory or a merged parquet file")
    return filesystem, inner, path


def beside(path: str, digest: str) -> str:
    """The place of another version of a merged file: its name with the digest, in the same folder."""
    folder, name = split_path(path)
    stem = re.sub(r"-[0-9a-f]{16}$", "", PurePosixPath(name).stem)
    return join_path(folder, f"{stem}-{digest}.parquet")
