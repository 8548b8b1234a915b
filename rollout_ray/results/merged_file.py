"""Read a merged file: the description of its run, and its rows as questions with trajectories.

All layouts are streamed into one form. Rows are not checked (see verify.py).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from rollout_ray.config.schema import DataConfig, Layout
from rollout_ray.config.templates import columns_of
from rollout_ray.core.errors import ConfigError, LedgerError, VerifyError
from rollout_ray.core.records import METADATA, NAMED_REWARDS, PROMPT_TOKENS, SCORES, TOKEN_COLUMNS, has_rewards
from rollout_ray.data.columns import ID_KEY
from rollout_ray.data.question_set import QuestionSet, load_questions
from rollout_ray.results.layouts import changes, has_flat_rewards
from rollout_ray.results.merged_path import MERGED, TRAJECTORY_FIELDS, layout_of, locate
from rollout_ray.results.metadata import Description, read_description
from rollout_ray.results.token_columns import nested_rows, own_lists, prompt_lists, trajectory_rows
from rollout_ray.storage.files import row_batches
from rollout_ray.storage.paths import split_path
from rollout_ray.storage.run_directory import RunDirectory

READ_QUESTIONS = 128  # rows held at a time of a file with one row per question
PANDAS_INDEX = re.compile(r"__index_level_\d+__")  # what pandas adds when it writes rows that it has filtered
READ_ROWS = 2048  # of a file with one row per trajectory


@dataclass(frozen=True, slots=True)
class StoredQuestion:
    """One question as stored in a file.

    Attributes:
        question_id: The id.
        trajectories: Trajectories as dicts.
        scores: Distinct values of s_end, s_path, s_cf, s_wm. More than one if a row of the flat layout was altered.
        uneven: Input columns that differ between the rows of the question.
        prompt_token_ids: The tokens of each prompt variant, if the run stores them.
    """

    question_id: Any
    trajectories: list[dict[str, Any]]
    scores: list[dict[str, Any]]
    uneven: tuple[str, ...] = ()
    prompt_token_ids: Sequence[Any] = ()

    def tokens_of(self, trajectory: Mapping[str, Any]) -> dict[str, Any]:
        """Return the stored tokens of a trajectory and of its prompt, by the names of a Completion."""
        if "token_ids" not in trajectory:
            return {}
        prompt = self.prompt_token_ids[trajectory["prompt_variant"]]
        return {"token_ids": trajectory["token_ids"], "logprobs": trajectory["logprobs"], PROMPT_TOKENS: prompt}


@dataclass
class MergedFile:
    """A merged file, by the path or URI of a run directory or of the file. Use as a context manager.

    Attributes:
        path: Full path or URI of the file.
        described_by: Run directory that describes a file without a description of its own. None: the folder of the file.
        run: The run directory that holds the file as merged.parquet, else None.
        layout: Layout of the file.
        description: Description of the run.
        note: Says that run.json gave the description, if the file has none.

    Raises:
        LedgerError: There is no such file, or no description of its run.
        VerifyError: The file cannot be read.
    """

    path: str
    described_by: str | None = None
    run: RunDirectory | None = field(init=False)
    layout: Layout = field(init=False)
    description: Description = field(init=False)
    note: str | None = field(init=False, default=None)
    _file: pq.ParquetFile = field(init=False, repr=False)

    def __post_init__(self) -> None:
        filesystem, inner, path = locate(self.path)
        self.path = path
        try:
            self._file = pq.ParquetFile(inner, filesystem=filesystem, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise VerifyError(
                f"{self.path} cannot be read: {error}; run the command of the run again to merge again"
            ) from error
        folder, name = split_path(self.path)
        self.run = RunDirectory(folder) if name == MERGED else None
        self.layout = layout_of(self.schema, self.path)
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
        missing = f"{self.path} does not name its run (did another program write it?)"
        folder = self.described_by or split_path(self.path)[0]
        try:
            record = RunDirectory(folder).record()
        except LedgerError as error:
            raise LedgerError(f"{missing}, and {error}. export and report take the run directory as --run") from error
        self.note = f"{missing}: run.json in {'its folder' if self.described_by is None else folder} was used"
        return read_description(record)

    @property
    def given_schema(self) -> pa.Schema:
        """Return the schema of the tables that `batches` yields."""
        return self._given(self.schema.remove_metadata().empty_table()).schema

    @property
    def tokens(self) -> bool:
        """Whether the run stores token ids and log-probabilities."""
        return self.description.config.output.tokens and self.layout != "responses"

    @property
    def rewards(self) -> bool:
        """Whether the trajectories have named rewards."""
        if self.layout == "trajectories":
            return has_flat_rewards(self.schema.names, self.description.columns)
        return has_rewards(self.schema)

    @property
    def _fields(self) -> tuple[str, ...]:
        """Return the fields of its trajectories, without tokens."""
        return (*TRAJECTORY_FIELDS, *([NAMED_REWARDS.name] if self.rewards else []))

    @property
    def num_rows(self) -> int:
        rows: int = self._file.metadata.num_rows
        return rows

    def require_scores(self) -> None:
        """Raise ConfigError if the layout holds no scores."""
        if self.layout == "responses":
            raise ConfigError(
                f"{self.path} has the layout 'responses', which holds no scores; run the command of the run with "
                "--layout questions, which merges again without generating"
            )

    def input_keys(self) -> list[str]:
        """Return the input columns that make up a question: prompt, gold answer, and columns of the prompt template."""
        data = self.description.config.data
        named = columns_of(data.prompt_template) if data.prompt_template else ()
        found = [name for name in sorted(named) if self.input_column(name) in self.schema.names]
        return list(dict.fromkeys(key for key in (data.prompt_key, self.description.gold_key, *found) if key))

    def question_set(self, given: pa.Table, ids: Sequence[str] | None, row: Sequence[str] = ()) -> QuestionSet:
        """Return the questions of a table.

        Args:
            given: A table that `batches` yielded.
            ids: Ids of its questions. None means hashes of their content.
            row: Input columns that the questions carry.
        """
        table = given.select([key for key in dict.fromkeys([*self.input_keys(), *row]) if key != ID_KEY])
        if ids is not None:
            table = table.append_column(ID_KEY, pa.array(ids, pa.string()))
        data, gold_key = self.description.config.data, self.description.gold_key
        own = {"prompt_key": data.prompt_key, "prompt_template": data.prompt_template, "gold_key": gold_key}
        questions = load_questions(table, DataConfig(**own, id_key=None if ids is None else ID_KEY))
        return replace(questions, row_columns=tuple(row))

    def _given(self, table: pa.Table) -> pa.Table:
        """Return the input columns of these rows, under their names in the input, and question_id."""
        written = {
            "questions": ["trajectories", *SCORES, *([PROMPT_TOKENS] if self.tokens else [])],
            "trajectories": [*self._fields, *SCORES, *(TOKEN_COLUMNS if self.tokens else [])],
            "responses": ["responses"],
        }
        if absent := [name for name in written[self.layout] if name not in table.column_names]:
            raise VerifyError(f"{self.path} has no column {', '.join(absent)}, which the run wrote; merge again")
        indexes = [name for name in table.column_names if PANDAS_INDEX.fullmatch(name)]
        given = table.drop_columns([*written[self.layout], *indexes])
        names = {self.input_column(name): name for name in self._fields if name in self.description.columns}
        return given.rename_columns([names.get(name, name) for name in given.column_names])

    def input_column(self, name: str) -> str:
        """Return the name that an input column has in this file."""
        return f"input_{name}" if self.layout == "trajectories" and name in self._fields else name

    def batches(self) -> Iterator[tuple[pa.Table, list[StoredQuestion]]]:
        """Yield some questions at a time, in the order of the file.

        Each item has a table of the input columns and question_id (one row per question), and the stored questions.
        In the layout `responses`, trajectories have only `full_text`.

        Raises:
            VerifyError: The file is torn.
        """
        read = {"questions": self._nested_rows, "trajectories": self._flat_rows, "responses": self._responses}[self.layout]
        try:
            yield from read()
        except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
            raise VerifyError(f"{self.path} cannot be read to its end: {error}. Merge again") from error

    def mean_lengths(self, wanted: Set[str]) -> dict[str, float]:
        """Return the mean output length in tokens of the `wanted` questions in the file. Reads only the lengths.

        Raises:
            ConfigError: The layout `responses` holds no lengths.
            VerifyError: The file is torn.
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
            raise VerifyError(f"{self.path} cannot be read to its end: {error}. Merge again") from error
        return {question_id: sums[question_id] / counts[question_id] for question_id in sums if counts[question_id]}

    def _nested_rows(self) -> Iterator[tuple[pa.Table, list[StoredQuestion]]]:
        for batch in row_batches(self._file, READ_QUESTIONS):
            table = pa.Table.from_batches([batch])
            ids = _ids(table.column(ID_KEY))
            lists = nested_rows(table.column("trajectories").combine_chunks())
            scores = table.select(SCORES).to_pylist()
            prompts = prompt_lists(table.column(PROMPT_TOKENS)) if self.tokens else [[]] * len(ids)
            rows = zip(ids, lists, scores, prompts, strict=True)
            yield self._given(table), [StoredQuestion(i, t, [s], prompt_token_ids=p) for i, t, s, p in rows]

    def _flat_rows(self) -> Iterator[tuple[pa.Table, list[StoredQuestion]]]:
        """Yield the questions of the flat layout. Consecutive rows with one id are one question."""
        held = self.schema.empty_table()
        for batch in row_batches(self._file, READ_ROWS):
            held = pa.concat_tables([held, pa.Table.from_batches([batch])]).combine_chunks()
            ids = _ids(held.column(ID_KEY))
            last = next((n for n in range(len(ids) - 1, 0, -1) if ids[n] != ids[n - 1]), 0)
            if last:  # the last question may continue in the next batch
                yield self._grouped(held.slice(0, last), ids[:last])
                held = held.slice(last)
        if held.num_rows:
            yield self._grouped(held, _ids(held.column(ID_KEY)))

    def _grouped(self, table: pa.Table, ids: Sequence[Any]) -> tuple[pa.Table, list[StoredQuestion]]:
        begins = [n for n in range(len(ids)) if n == 0 or ids[n] != ids[n - 1]]
        rows = trajectory_rows(table.select([*self._fields, *(TOKEN_COLUMNS if self.tokens else ())]))
        scores = table.select(SCORES).to_pylist()
        uneven_at = {key: changes(table.column(self.input_column(key))) for key in self.input_keys()}
        stored = []
        for begin, end in zip(begins, [*begins[1:], len(ids)], strict=True):
            distinct: list[dict[str, Any]] = []
            for row in scores[begin:end]:
                if row not in distinct:
                    distinct.append(row)
            uneven = tuple(key for key, change in uneven_at.items() if any(change[begin + 1 : end]))
            prompts = own_lists(rows[begin:end]) if self.tokens else []
            stored.append(StoredQuestion(ids[begin], rows[begin:end], distinct, uneven, prompts))
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
    """Return the ids as the run knew them: ids of bytes are text there."""
    return [value.decode() if isinstance(value, bytes) else value for value in column.to_pylist()]
