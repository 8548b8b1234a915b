"""Save finished samples of questions that are not complete, so that the next session draws only the rest.

A session that stops early writes one file or more for each scorer. Each sample is a row of PARTIAL_SCHEMA.
Invariant: a sample counts once, from the first file that has it, and only while no part holds its question.
Part files stay whole questions. No merge reads these files. Error rows are not saved: they are drawn again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import asdict

import pyarrow as pa

from rollout_ray.core.records import LOGPROBS, TOKEN_BYTES, TOKEN_IDS, Completion
from rollout_ray.storage.parts import BadPartError, Part, encode_part
from rollout_ray.storage.run_directory import PartScan, RunDirectory

FILE_BYTES = 64 << 20  # of text and tokens; what a scorer saves beyond that goes into another file

PARTIAL_SCHEMA = pa.schema(
    [
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("sample_index", pa.int32(), nullable=False),
        pa.field("full_text", pa.string(), nullable=False),
        pa.field("num_prompt_tokens", pa.int32(), nullable=False),
        pa.field("num_tokens", pa.int32(), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("engine", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("policy_version", pa.int32(), nullable=False),
        pa.field("token_ids", TOKEN_IDS),  # null where the run does not store tokens
        pa.field("logprobs", LOGPROBS),
        pa.field("prompt_token_ids", TOKEN_IDS),
    ]
)


def save_samples(run: RunDirectory, samples: Mapping[str, Iterable[Completion]]) -> int:
    """Save the samples of each question id. Return how many were saved.

    Raises:
        LedgerError: The storage refuses, or another driver has taken over.
    """
    saved = size = 0
    rows: list[dict[str, object]] = []
    for question_id, completions in samples.items():
        for completion in completions:
            if completion.finish_reason == "error":
                continue
            rows.append({"question_id": question_id, **asdict(completion)})
            size += len(completion.full_text) + TOKEN_BYTES * len(completion.token_ids or ())
            if size >= FILE_BYTES:
                saved += _write(run, rows)
                rows, size = [], 0
    return saved + _write(run, rows)


def _write(run: RunDirectory, rows: list[dict[str, object]]) -> int:
    if rows:
        table = pa.Table.from_pylist(rows, schema=PARTIAL_SCHEMA)
        name, content = encode_part(table, run.run_digest(), "partial")
        run.write_atomically(f"partial/{name}", content)
    return len(rows)


def scan_samples(run: RunDirectory, scan: PartScan, known: Set[str], samples_per_question: int) -> dict[str, set[int]]:
    """Return the numbers of the saved samples of each question that is not complete.

    It reads every byte of every file. It deletes files that are not needed any more, and quarantines damaged ones.

    Args:
        run: The run directory.
        scan: What the parts hold. The quarantined files are added.
        known: Ids of the questions of this run.
        samples_per_question: Samples of one question, over all arms.
    """
    kept: dict[str, set[int]] = {}
    for name in run.partial_files():
        try:
            keys = _keys(run.read_part(name, [PARTIAL_SCHEMA]))
        except BadPartError as error:
            run.quarantine(name)
            scan.quarantined[name] = error.reason
            continue
        new = [(i, number) for i, number in keys if i in known and i not in scan.done and number not in kept.get(i, ())]
        if not new:
            run.remove(name)
        for question_id, number in new:
            kept.setdefault(question_id, set()).add(number)
    for numbers in kept.values():
        if len(numbers) == samples_per_question:  # two drivers at once; a scorer takes up no question without a chunk
            numbers.remove(max(numbers))
    return kept


def remove_samples(run: RunDirectory) -> None:
    """Delete all saved samples, once every question is committed."""
    for name in run.partial_files():
        run.remove(name)


class SavedSamples:
    """The samples that earlier sessions saved, compressed in memory."""

    def __init__(self, run: RunDirectory) -> None:
        """Read all files. Raises LedgerError if one cannot be read."""
        self._files = [run.read_part(name, [PARTIAL_SCHEMA]) for name in run.partial_files()]
        self._rows: dict[str, dict[int, list[int]]] = {}  # question id -> number of the file -> rows
        for file_number, file in enumerate(self._files):
            for row, (question_id, _) in enumerate(_keys(file)):
                self._rows.setdefault(question_id, {}).setdefault(file_number, []).append(row)

    def of(self, question_id: str) -> dict[int, Completion]:
        """Return the saved samples of a question, by number."""
        found: dict[int, Completion] = {}
        for file_number, rows in self._rows.get(question_id, {}).items():
            for row in self._files[file_number].rows(rows).drop_columns("question_id").to_pylist():
                found.setdefault(row["sample_index"], Completion(**row))
        return found


def _keys(file: Part) -> list[tuple[str, int]]:
    """Return question id and sample number of each row."""
    columns = file.file.read(columns=["question_id", "sample_index"])
    return list(zip(columns["question_id"].to_pylist(), columns["sample_index"].to_pylist(), strict=True))
