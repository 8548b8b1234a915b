"""What a session's figures say: sums of the engines' counters, clocks of their states, and what bounded a run."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rollout_ray import Rollouts, RunConfig, collect
from rollout_ray.actors.backend import BackendInfo
from rollout_ray.actors.engine.engine import num_to_submit
from rollout_ray.actors.vllm_backend.stats import VllmStats
from rollout_ray.storage.run_directory import RunDirectory
from rollout_ray.telemetry.bottleneck import EngineAccount, SessionAccount, account_lines, bound_by
from rollout_ray.telemetry.engine_stats import EngineStats, IdleClock
from rollout_ray.telemetry.progress import Silent
from rollout_ray.telemetry.run_view import RunView
from tests.conftest import Command, demo_rows

ENGINE = EngineAccount(
    decoding_seconds=95.0, idle_seconds=5.0, generated_tokens=90_000, steps=1_000, prompt_tokens=1_000,
    cached_tokens=250, peak_running=100, max_num_seqs=100, tokens_per_second=947.4,
)  # fmt: skip
DECODING = SessionAccount(10.0, 100.0, 2.0, 0.0, 10.0, {"a": ENGINE, "b": ENGINE})


@pytest.mark.parametrize(
    ("account", "total", "words"),
    [
        (DECODING, 115.0, "Bounded by decoding: the engines decoded for 95% of their time, 90 sequences at once"),
        (replace(DECODING, starting_seconds=101.0), 215.0, "Bounded by starting the engines: 101.0 of 215.0 s"),
        (replace(DECODING, scoring_seconds=101.0), 215.0, "Bounded by scoring: 101.0 of 215.0 s after the last"),
        (replace(DECODING, held_up_seconds=30.0), 115.0, "Bounded by scoring: engines got no new work for 30.0 of 100.0 s"),
        (replace(DECODING, tail_seconds=40.0), 115.0, "Bounded by the tail: for the last 40.0 of 100.0 s"),
        (DECODING, 300.0, "Bounded by reading the input and merging the output: 188.0 of 300.0 s"),
        (SessionAccount(), 3.0, "Bounded by reading the input and merging the output: 3.0 of 3.0 s"),
        (
            replace(DECODING, engines={"a": replace(ENGINE, peak_running=40)}, tail_seconds=90.0),
            115.0,
            "Bounded by too few requests: at the fullest 40 of 100 places",
        ),
        (
            replace(DECODING, engines={"a": replace(ENGINE, peak_running=40)}, on_cpu=True),
            115.0,
            "Bounded by decoding: the engines decoded for 95% of their time, 90 sequences at once on average; more or "
            "faster cores",
        ),
        (
            replace(DECODING, engines={"a": replace(ENGINE, peak_running=30)}, on_cpu=True),
            115.0,
            "Bounded by too few requests: at the fullest 30 of 100 places",
        ),
        (
            replace(DECODING, engines={"a": replace(ENGINE, peak_running=40, kv_bound_steps=300, preemptions=7)}),
            115.0,
            "Bounded by KV cache: requests waited for room in it during 30% of the decoding steps, with 7 preemptions",
        ),
    ],
)
def test_one_sentence_says_what_took_the_time(account: SessionAccount, total: float, words: str) -> None:
    sentence = bound_by(account, total)
    assert sentence.startswith(words) and sentence.endswith(".")


def test_totals_over_engines_and_their_lines() -> None:
    many = replace(DECODING, engines={f"engine-{i}": ENGINE for i in range(11)})
    assert many.cache_hit_rate == 0.25 and many.mean_batch == 90.0 and many.idle_share == pytest.approx(0.05)
    lines = account_lines(many)
    assert lines[0] == "engine-0: 947 tokens/s, starting 0.0 s, decoding 95.0 s, idle 5.0 s"
    assert lines[-2:] == [
        "and 3 more engines, which stand in events.jsonl",
        "prefix cache hits 25%, mean batch 90, preemptions 0",
    ]
    assert account_lines(SessionAccount()) == []
    assert many.to_dict()["engines"]["engine-3"]["generated_tokens"] == 90_000


def test_counters_add_up_and_gauges_are_the_last_ones() -> None:
    told = EngineStats(running=3, steps=10, generated_tokens=30, idle_seconds=1.0)
    later = EngineStats(running=2, waiting=1, kv_use=0.5, steps=15, generated_tokens=42, idle_seconds=1.5)
    news = pickle.loads(pickle.dumps(later.since(told)))
    assert (news.steps, news.generated_tokens, news.idle_seconds, news.running, news.waiting) == (5, 12, 0.5, 2, 1)
    told.add(news)
    assert told == later and later.mean_batch == 2.8 and later.cache_hit_rate is None


def test_an_idle_clock_counts_the_pause_that_still_lasts() -> None:
    clock = IdleClock()
    while clock.seconds() == 0.0:
        pass
    clock.busy()
    before = clock.seconds()
    assert 0.0 < before == clock.seconds()
    clock.idle()
    while clock.seconds() == before:
        pass


def test_a_vllm_whose_statistics_lack_a_field_is_counted_by_its_outputs() -> None:
    stats = VllmStats(64)
    output: Any = SimpleNamespace(outputs=[SimpleNamespace(token_ids=[1, 2, 3])], prompt_token_ids=[4, 5])
    stats.record(SimpleNamespace(num_running_reqs=3), SimpleNamespace())
    stats.finished([output])
    assert (stats.stats.generated_tokens, stats.stats.prompt_tokens, stats.stats.cached_tokens) == (3, 2, 0)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Rollouts:
    """1,000 draws by two simulated engines, of which one is much slower and the other idles at the end."""
    engine = {
        "backend": "simulated",
        "max_num_seqs": 64,
        "simulated": {"sim_tokens_per_second": 40_000, "sim_straggler": 4},
    }
    output = {"output_dir": str(tmp_path_factory.mktemp("bounds") / "run")}
    return collect(demo_rows(125), RunConfig.model_validate({"engine": engine, "output": output}))


def test_a_run_accounts_for_its_engines(simulated: Rollouts) -> None:
    account = simulated.summary.account
    slow, fast = account.engines["engine-0"], account.engines["engine-1"]
    assert slow.generated_tokens + fast.generated_tokens == simulated.summary.tokens
    assert slow.prompt_tokens + fast.prompt_tokens == simulated.summary.prompt_tokens
    assert fast.tokens_per_second > 2 * slow.tokens_per_second
    assert {slow.max_num_seqs, fast.max_num_seqs} == {64} and 32 < fast.peak_running <= 64
    for engine in (slow, fast):
        assert engine.decoding_seconds + engine.idle_seconds <= account.generation_seconds + 0.2
        assert engine.steps > 10 and engine.restarts == 0
    assert account.starting_seconds + account.generation_seconds < simulated.summary.total_seconds


def test_the_finished_event_and_the_summary_say_it(simulated: Rollouts) -> None:
    from rollout_ray.telemetry.summary import summary_lines

    events = simulated.run.events()
    loads = [event for event in events if event["event"] == "load"]
    assert loads and set(loads[-1]["engines"]) == {"engine-0", "engine-1"}
    assert loads == sorted(loads, key=lambda load: load["generated_tokens"])
    finished = events[-1]["summary"]
    assert finished["account"] == simulated.summary.account.to_dict()
    assert finished["bound_by"] == simulated.summary.bound_by
    assert summary_lines(simulated.summary)[-1] == simulated.summary.bound_by != ""


def test_the_start_of_ray_is_part_of_starting(tmp_path: Path, rollout_process: Command) -> None:
    pq.write_table(pa.Table.from_pylist(demo_rows(2)), tmp_path / "questions.parquet")
    words = ["--dataset", str(tmp_path / "questions.parquet"), "--backend", "simulated", "--quiet"]
    words += ["--arm_set", "greedy", "--replicas", "1"]
    done = rollout_process(*words, "--output_dir", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path}/run/merged.parquet\n"
    events = RunDirectory(str(tmp_path / "run")).events()
    begun, started = (next(e["time"] for e in events if e["event"] == kind) for kind in ("begun", "engine_started"))
    # From the one to the other, but for the moments between an event and the clock's reading beside it.
    assert events[-1]["summary"]["account"]["starting_seconds"] > started - begun - 0.5


def test_a_backend_is_given_an_eighth_more_than_it_decodes() -> None:
    info = BackendInfo(64, 0.0, 0.0)
    assert num_to_submit(info, held=0, waiting=0, short=False) == 8  # no more at a time
    assert (
        num_to_submit(info, held=66, waiting=0, short=False) == 6
        and num_to_submit(info, held=80, waiting=16, short=False) == 0
    )


def test_one_whose_core_is_apart_is_given_a_batch_more_and_at_once() -> None:
    info = BackendInfo(64, 0.0, 0.0, core_apart=True)
    assert num_to_submit(info, held=0, waiting=0, short=False) == 128
    assert (
        num_to_submit(info, held=122, waiting=58, short=False) == 6
        and num_to_submit(info, held=128, waiting=64, short=False) == 0
    )


@pytest.mark.parametrize("apart", [False, True])
def test_a_backend_with_kv_cache_for_twenty_keeps_eight_waiting(apart: bool) -> None:
    info = BackendInfo(64, 0.0, 0.0, core_apart=apart)
    assert (
        num_to_submit(info, held=25, waiting=5, short=True) == 3
        and num_to_submit(info, held=72, waiting=52, short=True) == 0
    )


def test_a_kv_cache_that_is_too_small_is_named_and_most_of_the_work_stays_outside_of_vllm(
    tmp_path: Path, local_ray: None
) -> None:
    """Real vLLM with places for 256 sequences and KV cache for about twenty."""
    engine = {"max_num_seqs": 256, "max_model_len": 512, "kv_cache_gib": 0.02}
    output = {"output_dir": str(tmp_path / "run")}
    cfg = RunConfig.model_validate({"engine": engine, "output": output, "resources": {"replicas": 1}})
    most_waiting = 0

    class Watch(Silent):
        def update(self, view: RunView) -> None:
            nonlocal most_waiting
            most_waiting = max(most_waiting, *(e.stats.waiting for e in view.engines.values()))

    rollouts = collect(demo_rows(20), cfg, progress=Watch())
    account = rollouts.summary.account
    assert sum(engine.kv_bound_steps for engine in account.engines.values()) > 10 and most_waiting > 50
    assert max(engine.peak_running for engine in account.engines.values()) < 128
    assert bound_by(replace(account, starting_seconds=0.0, scoring_seconds=0.0), 1.0).startswith("Bounded by KV cache")
