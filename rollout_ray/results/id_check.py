"""Check which questions a merged file holds: every question of the run, once."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rollout_ray.results.findings import Disagreement, Verification
from rollout_ray.results.id_sketch import Difference, IdSketch
from rollout_ray.results.merged_file import MergedFile


class IdCheck:
    """Records the ids of a merged file row by row, and reports disagreements to `result`."""

    def __init__(self, merged: MergedFile, result: Verification) -> None:
        self._layout = merged.layout
        self._run = merged.run
        self._description = merged.description
        self._result = result
        self._seen: dict[str, int] = {}
        self._found = IdSketch()
        self._hash_counts: Counter[str] = Counter()

    def is_new(self, question_id: Any, row: int) -> bool:
        """Return whether a row is the first with its id, and record the id.

        Args:
            question_id: The id as stored, of any type.
            row: Number of the row in the file, from 0.
        """
        key = "" if question_id is None else str(question_id)
        if not key:
            if self._layout != "responses":
                self._result.add("rows", Disagreement(f"of row {row} (from 0)", None, None, "has no question_id"))
                return False
            key = f"row {row}"
        elif key in self._seen:
            self._result.add(
                "rows", Disagreement(key, None, None, f"stands twice, in rows {self._seen[key]} and {row} (from 0)")
            )
            return False
        else:
            self._found.add(key)
        self._seen[key] = row
        return True

    def id_of_hash(self, digest: str) -> str:
        """Return the id that the input row with this hash got. Exact duplicates after the first have a number."""
        self._hash_counts[digest] += 1
        return digest if self._hash_counts[digest] == 1 else f"{digest}-{self._hash_counts[digest]}"

    def finish(self, fingerprint: str) -> None:
        """Report missing and unexpected questions, and a wrong fingerprint, after all rows.

        Args:
            fingerprint: Fingerprint of the prompts and gold answers in the file.
        """
        absent = self._compare_ids()
        for question_id in absent.missing:
            self._result.add("rows", Disagreement(question_id, None, None, "is missing"))
        for question_id in absent.extra:
            self._result.add("rows", Disagreement(question_id, None, None, "is not of this run"))
        if absent.unnamed:
            self._report_unnamed()
        expected = self._description.fingerprint
        if fingerprint != expected and not any(self._result.counts[kind] for kind in ("rows", "count", "content")):
            what = "fingerprint of prompts and gold answers"
            self._result.add("content", Disagreement("(any)", None, None, what, fingerprint, expected))

    def _report_unnamed(self) -> None:
        """Report that ids differ which the sketch cannot name."""
        due = self._description.questions
        here = len(self._seen)
        what = "number of questions" if due != here else "has ids that are not of this run"
        values = (here, due) if due != here else (None, None)
        self._result.add("count", Disagreement("(any)", None, None, what, *values))

    def _compare_ids(self) -> Difference:
        """Compare the ids with those of the run. The parts of the run name ids that the sketch cannot name."""
        difference = self._description.id_sketch.compare(self._found)
        if difference.unnamed and self._run is not None and (known := self._run.done_ids()):
            missing = sorted(known - self._seen.keys())
            return Difference(tuple(missing), tuple(sorted(self._seen.keys() - known)), 0)
        return difference
