"""Write report.html: one self-contained page over a merged file, readable offline.

This module selects the page's facts and assembles the file. page/ has the browser's code.
The merged file is read once, as a stream.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import PurePosixPath
from typing import IO, Any

import pyarrow as pa

from rollout_ray.config.schema import RunConfig
from rollout_ray.config.scoring_schema import reward_sentence
from rollout_ray.core.errors import ConfigError
from rollout_ray.core.redaction import escape_controls, shorten
from rollout_ray.data.cells import cell_values
from rollout_ray.data.columns import ID_KEY
from rollout_ray.report.chunks import VALUE_CHARS, Chunks, Shown, packed
from rollout_ray.report.statistics import Tallies
from rollout_ray.report.timeline import BEGINS, timeline
from rollout_ray.results.merged_file import MergedFile
from rollout_ray.results.metadata import Description
from rollout_ray.scoring.graders import grading_columns
from rollout_ray.storage.folder import Folder
from rollout_ray.storage.paths import join_path, split_path
from rollout_ray.storage.run_directory import RunDirectory

SCRIPTS = ("dom.js", "charts.js", "summary.js", "filters.js", "questions.js", "report.js")


@dataclass(frozen=True)
class Report:
    """A written page: path or URI, bytes, questions it can show, questions in the file, seconds."""

    path: str
    size: int
    shown: int
    questions: int
    seconds: float


def report_path(merged: str) -> str:
    """Return the page's path beside a merged file.

    merged.parquet gives report.html, merged-<digest>.parquet gives report-<digest>.html,
    and <name>.parquet gives <name>-report.html.
    """
    folder, name = split_path(merged)
    stem = PurePosixPath(name).stem
    is_usual = stem == "merged" or stem.startswith("merged-")
    return join_path(folder, f"{stem.replace('merged', 'report', 1) if is_usual else f'{stem}-report'}.html")


def write_report(
    path: str, output: str | None = None, run: RunDirectory | None = None, described_by: str | None = None
) -> Report:
    """Write the page over a run's merged file, or over any merged file.

    Args:
        path: Run directory or merged file, a path or a URI.
        output: Path or URI of the page. None: beside the merged file.
        run: Directory that contains the file. Its lease is checked before the page appears.
        described_by: Run directory that describes a merged file which another program wrote.

    Raises:
        ConfigError: The layout is `responses`, which has no scores, or `output` does not end in .html.
        LedgerError: A file cannot be read or written.
        VerifyError: The merged file is damaged.
    """
    began = time.monotonic()
    if output is not None and not output.partition("?")[0].lower().endswith(".html"):
        raise ConfigError(f"{output} does not end in .html. Give the report a name that ends in .html.")
    with MergedFile(path, described_by) as merged:
        merged.require_scores()
        arms = merged.description.arms
        tallies, chunks = Tallies([arm.name for arm in arms]), Chunks(arms, merged.description.config.scoring)
        for given, stored in merged.batches():
            row = grading_columns(merged.description.config.scoring, given.column_names)
            questions = merged.question_set(given, [str(s.question_id) for s in stored], row).questions()
            for question, one, shown in zip(questions, stored, _shown_rows(merged, given), strict=True):
                tallies.add(one.trajectories, one.scores[0]["s_wm"])
                chunks.add(question, one, shown)
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


def _data_prompts(merged: MergedFile, given: pa.Table) -> list[str | None]:
    """Return the prompts before the prompt template, or None without a template or a text."""
    data = merged.description.config.data
    if data.prompt_template is None or data.prompt_key not in given.column_names:
        return [None] * given.num_rows
    return [value if isinstance(value, str) else None for value in given.column(data.prompt_key).to_pylist()]


def _shown_rows(merged: MergedFile, given: pa.Table) -> list[Shown]:
    """Return what the page shows of each row besides prompt and gold: the data's prompt and the user's other columns."""
    description = merged.description
    usual = (description.config.data.prompt_key, description.gold_key, description.config.data.id_key, ID_KEY)
    names = [name for name in given.column_names if name not in usual]
    columns = {escape_controls(name): [_as_text(value) for value in _values(given, name)] for name in names}
    rows = zip(*columns.values(), strict=True) if columns else ((),) * given.num_rows
    return [
        Shown(data, dict(zip(columns, row, strict=True)))
        for data, row in zip(_data_prompts(merged, given), rows, strict=True)
    ]


def _values(table: pa.Table, name: str) -> Iterator[Any]:
    return (value for chunk in table.column(name).chunks for value in cell_values(chunk))


def _as_text(value: Any) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return escape_controls(shorten(text, VALUE_CHARS))


def _facts(merged: MergedFile, tallies: Tallies, stride: int) -> dict[str, Any]:
    """Return the page's data apart from the questions, with all control characters escaped."""
    description, run = merged.description, merged.run
    record: Mapping[str, Any] = {}
    events: list[dict[str, Any]] = []
    if run is not None and run.exists("run.json"):
        record, events = run.record(), run.events()
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
        "reward_rule": reward_sentence(description.config.scoring),
        "config": _config(record.get("config") or description.config.model_dump(mode="json"), events),
        "defaults": RunConfig().model_dump(mode="json"),
        "sessions": timeline(events),
        "stride": stride,
        **tallies.to_dict(),
    }
    escaped: dict[str, Any] = _shown_all(facts)
    return escaped


def _config(begun: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the config with the fields that the last session changed. run.json has those of the first session."""
    config = {section: dict(values) for section, values in begun.items()}
    told = [event["operational"] for event in events if event["event"] in BEGINS and "operational" in event]
    for name, value in (told[-1] if told else {}).items():
        section, _, rest = name.partition(".")
        inner, _, leaf = rest.rpartition(".")
        fields = config.setdefault(section, {})
        if inner:
            fields[inner] = {**(fields.get(inner) or {}), leaf: value}
        else:
            fields[leaf] = value
    return config


def _reward(description: Description) -> dict[str, Any]:
    """Return the reward's parameters in this run."""
    scoring = description.config.scoring
    if functions := scoring.reward_functions:
        return {"custom": ", ".join(functions.values())}
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
    """Assemble the file. `size` is the number of bytes written."""

    def __init__(self, facts: Mapping[str, Any], index: Mapping[str, Any], chunks: Chunks) -> None:
        self._facts = facts
        self._index = index
        self._chunks = chunks
        self.size = 0

    def write(self, stream: IO[bytes]) -> None:
        """Write the template with each {{name}} replaced.

        The content security policy allows only this style and this script, by their hashes.
        """
        folder = resources.files("rollout_ray.report") / "page"
        style = (folder / "report.css").read_text("utf-8")
        script = '"use strict";\n' + "\n".join((folder / name).read_text("utf-8") for name in SCRIPTS)
        policy = (
            f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; base-uri 'none'; "
            "form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
        )
        parts = {"policy": policy, "title": html.escape(self._facts["title"]), "style": style, "script": script}
        for number, text in enumerate(re.split(r"\{\{(\w+)\}\}", (folder / "report.html").read_text("utf-8"))):
            if number % 2 == 0:
                self._put(stream, text.encode())
            elif text == "data":
                self._write_data(stream)
            else:
                self._put(stream, parts[text].encode())

    def _write_data(self, stream: IO[bytes]) -> None:
        """Write facts, index and chunks as data blocks that no browser executes."""
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
