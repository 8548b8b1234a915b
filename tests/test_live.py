"""What is shown of a run while it goes on: the live view, plain lines, and early warnings."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from rollout_ray import RunConfig, collect
from rollout_ray.core.records import Question, RolloutRequest, Trajectory
from rollout_ray.telemetry.arm_summary import ArmSummary
from rollout_ray.telemetry.early_warnings import ENOUGH, EarlyWarnings
from rollout_ray.telemetry.engine_stats import ArmCount, EngineStats
from rollout_ray.telemetry.live_view import Live, Screen
from rollout_ray.telemetry.progress import Plain, duration, plain_line
from rollout_ray.telemetry.run_view import EngineView, RunView
from rollout_ray.telemetry.summary import Summary
from tests.conftest import demo_rows


def under_way(engines: int, arms: int = 8) -> RunView:
    """A run at a third of its work; of more than four engines one is idle and one was started again."""
    view = RunView(total=1000, before=100, total_samples=7200, committed=290, generated_samples=2400, pending=3000)
    view.generation_began, view.last_generated = time.monotonic() - 60, time.monotonic()
    for i in range(engines):
        engine = view.engines[f"engine-{i}"] = EngineView(places=256)
        engine.enter("running", 300)
        engine.stats, engine.rate = EngineStats(running=256, waiting=44, kv_use=0.5), 1000.0
    if engines > 4:
        view.engines["engine-1"].enter("idle")
        view.engines["engine-2"].enter("dead")
        view.engines["engine-2"].enter("starting")
    for i in range(arms):
        view.delivered_arms[f"arm-{i}"] = ArmCount(300, 30000, 30)
        view.summary.arms[f"arm-{i}"] = ArmSummary(290, 29000, 290, 145, 290, 290.0, 29)
    view.summary.trajectories, view.summary.score_status = 290 * arms, Counter(correct=145 * arms, incorrect=145 * arms)
    return view


@pytest.mark.parametrize("width", [80, 140])
@pytest.mark.parametrize("height", [24, 50])
@pytest.mark.parametrize("engines", [1, 16, 1000])
def test_the_view_fits_the_terminal_and_leaves_nothing_out_in_silence(
    width: int, height: int, engines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)  # a busy machine may take a second to get to the end
    console = Console(width=width, height=height, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(Screen(under_way(engines)))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) < height and max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "33%" in text and "2:00 min left" in text and "390/1,000 questions" in text and "3,000 queued" in text
    assert "arm-7" in text and "50.0%" in text and "score status: correct 1,160, incorrect 1,160" in text
    named = sum(f"engine-{i} " in text for i in range(engines))
    assert named == engines or f"{engines - named} more" in text
    assert "…" not in text
    if engines == 16:
        assert "starting (restarted)" in text and "idle" in text and "1 restart" in text


def test_before_anything_is_drawn_it_says_that_engines_start() -> None:
    view = RunView(total=5, total_samples=40, engines={"engine-0": EngineView()})
    console = Console(width=80, height=24, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(Screen(view))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "engine-0  starting" in text and "left" not in text and "truncated" not in text
    assert plain_line(view) == "0/40 trajectories (0%); 0/5 questions, 0 tokens/s; engine-0 starting"


def drawn(view: RunView) -> str:
    console = Console(width=100, height=24, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(Screen(view))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_trajectories_and_arms_are_shown_before_a_question_is_complete() -> None:
    """A question of long samples ends after minutes. Until then progress stood at 0 of 120, without an arm."""
    view = RunView(total=15, total_samples=120, arm_names=["terse", "loose"])
    view.generation_began = time.monotonic() - 60
    engine = view.engines["engine-0"] = EngineView()
    engine.enter("running", 100)
    engine.stats.generated_tokens = 4620
    engine.partial_arms = {"loose": ArmCount(18, 1800, 9), "terse": ArmCount(2, 20)}
    line = plain_line(view)
    assert line.startswith("20/120 trajectories (17%); 5:00 min left; 0/15 questions, 4,620 tokens, ")
    rows = [row.split() for row in drawn(view).splitlines() if row.startswith(("terse", "loose"))]
    assert rows == [["terse", "2", "-", "-", "10", "0%"], ["loose", "18", "-", "-", "100", "50%"]]
    engine.enter("dead")
    assert view.ended_samples == 0 and view.arms() == {}


def test_the_time_left_counts_scoring(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engines are done, and a quarter is scored after 10 s. It said that 0 s were left."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    view = RunView(total=15, total_samples=120, arm_names=["a"] * 8)
    view.generation_began = 900.0
    view.deliver(120, {"a": ArmCount(120, 1200)})
    view.watch(0, 120, behind=False)
    assert view.seconds_left() is None
    now = 1010.0
    view.watch(0, 90, behind=False)
    assert view.seconds_left() == pytest.approx(30)


def test_what_is_lost_on_its_way_to_a_scorer_counts_again() -> None:
    view = RunView(total=2, total_samples=4, arm_names=["a", "b"])
    view.deliver(4, {"a": ArmCount(2, 20, 2), "b": ArmCount(2, 8)})
    view.lose([RolloutRequest(0, 0, Question("q", "p", None), 0, 2)])
    assert view.ended_samples == 2 and view.arms() == {"a": ArmCount(1, 10, 1), "b": ArmCount(1, 4)}


def test_a_real_run_is_shown_and_nothing_of_the_view_stays(tmp_path: Path, local_ray: None) -> None:
    engine = {"backend": "simulated", "simulated": {"sim_tokens_per_second": 30_000}}
    output = {"output_dir": str(tmp_path / "run"), "flush_seconds": 0.3}
    console = Console(width=100, height=40, file=io.StringIO(), force_terminal=True, color_system=None)
    cfg = RunConfig.model_validate({"engine": engine, "output": output})
    collect(demo_rows(60), cfg, progress=Live(console))
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert "engine-1  running" in written and "wolfram_3" in written and "score status: " in written
    assert written.endswith("\x1b[1A\x1b[2K") or written.rstrip("\n").endswith("\x1b[2K")


def test_plain_lines_say_the_same() -> None:
    line = plain_line(under_way(2))
    assert line == (
        "2,400/7,200 trajectories (33%); 2:00 min left; 390/1,000 questions, 2,000 tokens/s, 3,000 queued; "
        "engine-0 running, engine-1 running; accuracy 50.0%; reward 1.000"
    )
    assert "14 engines running, 1 engines idle, 1 engines starting" in plain_line(under_way(16))


def test_plain_lines_come_every_ten_seconds(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    plain, view = Plain(), under_way(1)
    plain.update(view)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr("rollout_ray.telemetry.progress.PLAIN_INTERVAL_S", 0.0)
    plain.update(view)
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (59.4, "59 s"), (60, "1:00 min"), (3599, "59:59 min"), (7800, "2:10 h")]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


# Early warnings


def seen(count: int = 100, **changes: object) -> Summary:
    summary = Summary(questions=count, trajectories=count)
    summary.finish_reason, summary.score_status = Counter(stop=count), Counter(correct=count)
    summary.arms["a"] = ArmSummary(count, count * 9, count, count, count, float(count), 0)
    for name, value in changes.items():
        setattr(summary, name, value)
    return summary


@pytest.mark.parametrize(
    ("summary", "words"),
    [
        (seen(finish_reason=Counter(stop=79, length=21)), "21% of 100 outputs were cut off at max_tokens; raise"),
        (seen(score_status=Counter(no_answer=100)), "no answer was found in any of 100 outputs; have the prompt ask"),
        (
            seen(score_status=Counter(timeout=100), arms={"a": ArmSummary(100)}),
            "all 100 rewards are null, with score status timeout; look at",
        ),
        (
            seen(arms={"a": ArmSummary(100, rewarded=100, only_text="x")}),
            "all 100 outputs of arm a are the same text; check",
        ),
    ],
)
def test_what_is_wrong_is_said_once(summary: Summary, words: str) -> None:
    early = EarlyWarnings()
    (said,) = early.news(summary)
    assert said.startswith(words)
    assert early.news(summary) == []


@pytest.mark.parametrize(
    "summary",
    [
        seen(),
        seen(finish_reason=Counter(stop=80, length=20)),
        seen(score_status=Counter(no_answer=99, correct=1)),
        seen(ENOUGH - 1, score_status=Counter(no_answer=ENOUGH - 1)),
    ],
)
def test_a_sound_run_is_left_in_peace(summary: Summary) -> None:
    assert EarlyWarnings().news(summary) == []


def unknown_reward(question: Question, trajectories: Sequence[Trajectory]) -> list[float | None]:
    """A custom reward for the tests: never known."""
    return [None for _ in trajectories]


def test_a_real_run_warns_while_it_goes_on(tmp_path: Path, local_ray: None, caplog: pytest.LogCaptureFixture) -> None:
    """Every output is an error, and so the same text. That no reward is known follows, and is not said again."""
    values = {
        "engine": {"backend": "simulated", "simulated": {"sim_error_rate": 1.0}},
        "output": {"output_dir": str(tmp_path / "run")},
        "arms": {"arm_set": "samples"},
        "scoring": {"reward": "tests.test_live:unknown_reward"},
    }
    rollouts = collect(demo_rows(10), RunConfig.model_validate(values))
    warnings = [event["text"] for event in rollouts.run.events() if event["event"] == "early_warning"]
    assert [words.partition(";")[0] for words in warnings] == [
        "80 of 80 trajectories are errors: the simulated engine refused the request (80)",
        "all 80 outputs of arm samples are the same text",
    ]
    assert all(words in caplog.text for words in warnings)
