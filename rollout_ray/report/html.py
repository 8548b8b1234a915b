"""Writes report.html: one self-contained page over a merged file, which opens from disk without a network.

Owns which facts of a run the page gets, how page, style, script and data become one file, and where it is written. What is
counted is tallies.py's, engines' times timeline.py's, the questions report_chunks.py's; page/ holds what the browser runs.
The merged file is read once, in a stream.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import PurePosixPath
from typing import IO, Any

from rollout_ray.core.errors import ConfigError
from rollout_ray.core.redaction import escape_controls
from rollout_ray.report.chunks import Chunks, packed
from rollout_ray.report.statistics import Tallies
from rollout_ray.report.timeline import timeline
from rollout_ray.results.merged_file import MergedFile
from rollout_ray.results.metadata import Description
from rollout_ray.storage.folder import Folder, join_path, split_path
from rollout_ray.storage.run_directory import RunDirectory

SCRIPTS = ("dom.js", "charts.js", "summary.js", "questions.js", "report.js")


@dataclass(frozen=True)
class Report:
    """A page that was written: its path or URI, its size, how many questions it can show of how many, and the time."""

    path: str
    size: int
    shown: int
    questions: int
    seconds: float


def report_path(merged: str) -> str:
    """Beside a merged file: report.html for merged.parquet, report-<digest>.html for merged-<digest>.parquet, else
    <name>-report.html."""
    folder, name = split_path(merged)
    stem = PurePosixPath(name).stem
    is_usual = stem == "merged" or stem.startswith("merged-")
    return join_path(folder, f"{stem.replace('merged', 'report', 1) if is_usual else f'{stem}-report'}.html")


def write_report(path: str, output: str | None = None, run: RunDirectory | None = None) -> Report:
    """Writes the page over a run directory's merged file, or any merged file, and returns what it is like.

    `output` is the page's path or URI, unset the place beside the file; with `run`, the directory that holds the file, its
    lease is checked before the page appears. Raises ConfigError where the file has the layout `responses`, which holds no
    scores, or `output` does not end in .html, LedgerError and VerifyError where something cannot be read or written.
    """
    began = time.monotonic()
    if output is not None and not output.partition("?")[0].endswith(".html"):
        raise ConfigError(f"{output} is no name for a report; give one that ends in .html")
    with MergedFile(path) as merged:
        merged.require_scores()
        arms = merged.description.arms
        tallies, chunks = Tallies([arm.name for arm in arms]), Chunks(arms, merged.description.config.scoring)
        for given, stored in merged.batches():
            questions = merged.question_set(given, [str(s.question_id) for s in stored]).questions()
            for question, one in zip(questions, stored, strict=True):
                tallies.add(one.trajectories, one.scores[0]["s_wm"])
                chunks.add(question, one)
        chunks.finish()
        index = chunks.index()
        shown_questions = len(index["columns"].get("n", ()))
        facts = _facts(merged, tallies, chunks.stride)
        target = output or report_path(merged.path)
        folder, name = split_path(target)
        page = _Page(facts, index, chunks)
        place = run if run is not None and output is None else Folder(folder)
        place.write_atomically(name, page.write)
    return Report(target, page.size, shown_questions, tallies.questions, time.monotonic() - began)


def _facts(merged: MergedFile, tallies: Tallies, stride: int) -> dict[str, Any]:
    """All that the page shows beside the questions; every string with its control characters escaped."""
    description, run = merged.description, merged.run
    record: Mapping[str, Any] = {}
    sessions: list[dict[str, Any]] = []
    if run is not None and run.exists("run.json"):
        record, sessions = run.record(), timeline(run.events())
    folder, name = split_path(merged.path)
    metadata = description.metadata
    versions = {k: metadata.get(k) for k in ("vllm", "torch", "transformers", "ray", "python", "rollout_ray")}
    facts = {
        "title": PurePosixPath(folder.partition("?")[0]).name or folder,
        "file": merged.path if name == "merged.parquet" else name,
        "model": metadata.get("model", description.config.model.model_path),
        "rescored_from": metadata.get("rescored_from"),
        "versions": {k: v for k, v in versions.items() if v},
        "dataset": record.get("dataset", {}).get("name"),
        "arms": [asdict(arm) for arm in description.arms],
        "reward": _reward(description),
        "config": record.get("config") or description.config.model_dump(mode="json"),
        "sessions": sessions,
        "stride": stride,
        **tallies.to_dict(),
    }
    escaped: dict[str, Any] = _shown_all(facts)
    return escaped


def _reward(description: Description) -> dict[str, Any]:
    """The reward's formula with this run's numbers."""
    scoring = description.config.scoring
    if scoring.reward is not None:
        return {"custom": scoring.reward}
    names = ("alpha", "beta", "gamma", "bonus", "bonus_above", "penalty_per_token", "penalty_free_tokens", "s_wm_weights")
    return {name: getattr(scoring, name) for name in names}


def _shown_all(value: Any) -> Any:
    if isinstance(value, str):
        return escape_controls(value)
    if isinstance(value, Mapping):
        return {escape_controls(str(k)): _shown_all(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shown_all(v) for v in value]
    if isinstance(value, float) and value - value != 0:
        return str(value)
    return value


class _Page:
    """Puts the file together. `size` is what was written, in bytes."""

    def __init__(self, facts: Mapping[str, Any], index: Mapping[str, Any], chunks: Chunks) -> None:
        self._facts, self._index, self._chunks, self.size = facts, index, chunks, 0

    def write(self, stream: IO[bytes]) -> None:
        """The template, each {{name}} in it replaced. Style and script are allowed by their hashes, and nothing else."""
        folder = resources.files("rollout_ray.report") / "page"
        style = (folder / "report.css").read_text("utf-8")
        script = '"use strict";\n' + "\n".join((folder / name).read_text("utf-8") for name in SCRIPTS)
        policy = (
            f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; base-uri 'none'; "
            "form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
        )
        parts = {"policy": policy, "title": html.escape(self._facts["title"]), "style": style, "script": script}
        for number, piece in enumerate(re.split(r"\{\{(\w+)\}\}", (folder / "report.html").read_text("utf-8"))):
            if number % 2 == 0:
                self._put(stream, piece.encode())
            elif piece == "data":
                self._write_data(stream)
            else:
                self._put(stream, parts[piece].encode())

    def _write_data(self, stream: IO[bytes]) -> None:
        """Data blocks, which no browser runs: the facts and the index, and the chunks, all gzipped in base64."""
        self._block(stream, "facts", packed(self._facts))
        self._block(stream, "index", packed(self._index))
        for number, content in enumerate(self._chunks.contents()):
            self._block(stream, f"chunk-{number}", content)

    def _block(self, stream: IO[bytes], name: str, content: bytes) -> None:
        self._put(stream, f'<script type="text/plain" id="{name}">'.encode() + content + b"</script>\n")

    def _put(self, stream: IO[bytes], content: bytes) -> None:
        stream.write(content)
        self.size += len(content)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
