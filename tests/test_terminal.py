"""Names and texts of a data set, shown in a terminal and not obeyed by it."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from rollout_ray.config.arm_schema import ArmConfig
from rollout_ray.core.redaction import escape_controls
from rollout_ray.telemetry.arm_summary import ArmSummary
from rollout_ray.telemetry.live_view import Live
from rollout_ray.telemetry.progress import Plain
from rollout_ray.telemetry.run_view import EngineView, RunView
from rollout_ray.telemetry.summary import Summary, summary_table
from tests.conftest import Command

HOSTILE = "[red]x[/] \x1b[31m\x1b]0;title\x07\u202e"
ESCAPED = "[red]x[/] \\x1b[31m\\x1b]0;title\\x07\\u202e"


def test_hostile_names_are_shown_and_not_obeyed() -> None:
    assert escape_controls(HOSTILE) == ESCAPED and escape_controls("naïve 🦆\n\ttab") == "naïve 🦆\n\ttab"
    summary = Summary(arms={HOSTILE: ArmSummary(trajectories=1)})
    view = RunView(1, engines={HOSTILE: EngineView(state="running")}, summary=summary)
    console = Console(file=io.StringIO(), force_terminal=True, width=200, color_system=None)
    with Live(console) as live:
        live.update(view)
    console.print(summary_table(summary))
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert written.count(ESCAPED) >= 3 and "\x1b]0;" not in written and "\x1b[31m" not in written
    for name in (HOSTILE, "../x", "a b", "a\n", ""):
        with pytest.raises(ValueError, match="name"):
            ArmConfig(name=name)


def test_lines_of_a_log_are_shown_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout_ray.telemetry.progress.PLAIN_INTERVAL_S", 0.0)
    Plain().update(RunView(1, engines={HOSTILE: EngineView()}))
    assert ESCAPED in capsys.readouterr().out


def test_error_texts_and_paths_are_shown_and_not_obeyed(tmp_path: Path, rollout: Command, local_ray: None) -> None:
    done = rollout("--dataset", HOSTILE, cwd=tmp_path)
    assert done.returncode == 3 and f"rollout: {ESCAPED} does not exist" in done.stderr and "\x1b" not in done.stderr
    folder = tmp_path / HOSTILE.replace("/", "")
    folder.mkdir()
    rows = [{"prompt": HOSTILE, "gold_answer": HOSTILE, "question_id": HOSTILE, HOSTILE: HOSTILE}] * 2
    (folder / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = rollout("--dataset", str(folder / "q.jsonl"), "--output_dir", str(folder / "run"))
    assert done.returncode == 3 and "the same question_id" in done.stderr and "\x1b" not in done.stderr + done.stdout
    (folder / "q.jsonl").write_text(json.dumps(rows[0]))
    words = ["--dataset", str(folder / "q.jsonl"), "--output_dir", str(folder / "run"), "--backend", "simulated"]
    done = rollout(*words, "--sim_tokens_per_second", "1000000", "--replicas", "1")
    assert done.returncode == 0, done.stderr
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", done.stdout + done.stderr)
    assert escape_controls(str(folder / "run" / "merged.parquet")) in done.stdout
    assert pq.ParquetFile(folder / "run" / "merged.parquet").read().select(list(rows[0])).to_pylist() == rows[:1]
