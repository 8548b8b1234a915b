"""Read a question set and turn its rows into questions with stable ids.

A row that cannot be asked becomes a Question with a `fault`. An input that cannot be read raises DatasetError.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from rollout_ray.config.schema import DataConfig
from rollout_ray.config.templates import MissingColumn, columns_of
from rollout_ray.core.errors import DatasetError
from rollout_ray.core.records import Question
from rollout_ray.core.redaction import shorten
from rollout_ray.data.cells import ENDS_WITH_ANSWER, NotText, Row, cell_values, decode, read_columns, read_rows
from rollout_ray.data.columns import GOLD_KEY, ID_KEY, check_columns, check_files, find_column, list_columns
from rollout_ray.data.sources import Source, open_source

log = logging.getLogger(__name__)

PASSES = 4


@dataclass(frozen=True)
class QuestionSet:
    """A question set that was read once, so that every id is known and unique.

    Attributes:
        gold_key: Column of the gold answers, or None.
        ids: Question ids in input order.
        fingerprint: Digest of the set of (id, prompt, gold). The order of the rows does not change it.
        passes: Pass over the input in which a question is asked, by id, if it is not the first.
        template: Template that makes the prompts, or None.
        faults: Number of rows that cannot be asked, by reason.
        row_columns: Columns that questions carry as `row`.
    """

    source: Source
    prompt_key: str
    gold_key: str | None
    ids: tuple[str, ...]
    fingerprint: str
    passes: Mapping[str, int] = field(default_factory=dict)
    template: str | None = None
    faults: Mapping[str, int] = field(default_factory=dict)
    row_columns: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def questions(self, done: Set[str] = frozenset()) -> Iterator[Question]:
        """Yield the questions pass by pass, each pass in input order. Holds one batch of rows at a time.

        Args:
            done: Ids of questions to leave out.
        """
        for pass_number in sorted({0, *self.passes.values()}):
            for ids, batch in self.batches():
                wanted = [self.passes.get(question_id, 0) == pass_number and question_id not in done for question_id in ids]
                if not any(wanted):
                    continue
                rows = read_rows(batch, self.prompt_key, self.gold_key, self.template)
                columns = read_columns(batch, self.row_columns)
                gold_is_integer = self.gold_key is not None and pa.types.is_integer(batch.column(self.gold_key).type)
                for question_id, asked, (prompt, gold, fault), row in zip(ids, wanted, rows, columns, strict=True):
                    if asked:
                        yield Question(question_id, prompt, gold, fault, row, gold_is_integer)

    def long_first(self, lengths: Mapping[str, float]) -> QuestionSet:
        """Return the same set, asked in PASSES passes from the longest to the shortest expected output.

        Args:
            lengths: Expected output length by question id, in any unit. Other questions join the first pass.
        """
        known = sorted((i for i in self.ids if i in lengths), key=lambda i: -lengths[i])
        return replace(self, passes={i: PASSES * rank // len(known) for rank, i in enumerate(known)})

    def batches(self) -> Iterator[tuple[tuple[str, ...], pa.RecordBatch]]:
        """Yield the rows of the input with their ids, in input order."""
        begin = 0
        for batch in self.source.batches():
            yield self.ids[begin : begin + batch.num_rows], batch
            begin += batch.num_rows


def load_questions(dataset: Any, data: DataConfig) -> QuestionSet:
    """Read the whole input once and check it.

    Args:
        dataset: A path (file, folder or glob of parquet, JSON lines, CSV or Arrow), a data frame, an Arrow table, a list
            of dicts, a Hugging Face Dataset or a Ray Dataset.
        data: Names of the columns, template and limit.

    Raises:
        DatasetError: The input cannot be read. The text names file, row and column.
    """
    source = open_source(dataset, data.limit)
    gold_key = find_column(source, data.gold_key, GOLD_KEY, "gold_key")
    id_key = find_column(source, data.id_key, ID_KEY, "id_key")
    check_columns(source, data.prompt_key, gold_key, id_key)
    template = data.prompt_template
    in_template = frozenset() if template is None else columns_of(template)
    check_files(source, data.prompt_key if template is None else None, gold_key, id_key, in_template)
    ids: list[str] = []
    seen: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    total = 0
    for batch in source.batches():
        given = _given_ids(batch, id_key, source.name, len(ids)) if id_key else None
        rows = _locate_missing_columns(read_rows(batch, data.prompt_key, gold_key, template), source, ids)
        for number, row in enumerate(rows):
            content = json.dumps(row, sort_keys=True, ensure_ascii=True, default=str).encode()
            question_id = given[number] if given else _content_id(content, seen)
            ids.append(question_id)
            if row[2] is not None:
                faults[row[2]] += 1
            total += _row_number(content, question_id)
    if id_key:
        _refuse_duplicates(ids, id_key, source.name)
    fingerprint = f"{total % 2**128:032x}"
    return QuestionSet(source, data.prompt_key, gold_key, tuple(ids), fingerprint, template=template, faults=faults)


def check_faults(questions: QuestionSet) -> None:
    """Warn of the rows that cannot be asked, with the most frequent reason.

    Raises:
        DatasetError: No row can be asked, as in a set of conversations for SFT, which end with the answer.
    """
    count = sum(questions.faults.values())
    if not count:
        return
    fault, times = Counter(questions.faults).most_common(1)[0]
    name = questions.source.name
    if count == len(questions):
        remedy = "Remove the last message of each conversation" if fault == ENDS_WITH_ANSWER else "Correct the prompts"
        others = "" if times == count else f" (in {times} of {count} rows)"
        raise DatasetError(f"{name}: no row can be asked: {fault}{others}. {remedy}, or name another column: --prompt_key")
    log.warning("%s: %d of %d rows cannot be asked, %d of them because %s", name, count, len(questions), times, fault)


def _content_id(content: bytes, seen: Counter[str]) -> str:
    """Return the hash of the content. Exact duplicates after the first get a number."""
    digest = hashlib.blake2b(content, digest_size=8).hexdigest()
    seen[digest] += 1
    return digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"


def _row_number(content: bytes, question_id: str) -> int:
    """Return the 128-bit hash of a row. The sum over all rows is the fingerprint."""
    row = hashlib.blake2b(content, digest_size=16, person=b"rollout row", key=question_id.encode()[-64:])
    return int.from_bytes(row.digest(), "big")


def _locate_missing_columns(rows: Iterator[Row], source: Source, ids: list[str]) -> Iterator[Row]:
    """Yield the rows. Raise DatasetError with file, row and column if the template names a missing column."""
    try:
        yield from rows
    except MissingColumn as missing:
        raise DatasetError(
            f"{source.name}, row {len(ids)} (from 0): the prompt template asks for '{missing}', which is no column; "
            f"{list_columns(source)}. Correct the template, or the data"
        ) from missing


def _given_ids(batch: pa.RecordBatch, key: str, name: str, begin: int) -> list[str]:
    values = [decode(v) if isinstance(v, bytes) else v for v in cell_values(batch.column(key))]
    for number, value in enumerate(values):
        if value is None or isinstance(value, NotText) or value != value or not str(value):
            place = f"{name}, row {begin + number} (from 0)"
            raise DatasetError(
                f"{place}: column '{key}' has no id. Give every row an id, or name another column with --id_key"
            )
    return [str(value) for value in values]


def _refuse_duplicates(ids: list[str], key: str, name: str) -> None:
    if len(set(ids)) == len(ids):
        return
    first: dict[str, int] = {}
    for number, question_id in enumerate(ids):
        if question_id in first:
            repeated = shorten(repr(question_id), 80)
            raise DatasetError(
                f"{name}: rows {first[question_id]} and {number} (from 0) have the same {key} {repeated}; "
                "make them unique, or name another column with --id_key"
            )
        first[question_id] = number
