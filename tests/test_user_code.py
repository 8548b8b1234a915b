"""Rewards of the user's own: the signatures that are known, what they may return, and what misbehaving code costs."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rollout_ray.api.collect import Rollouts
from rollout_ray.config.loading import load_config, overlaid
from rollout_ray.config.schema import RunConfig
from rollout_ray.config.scoring_schema import ScoringConfig, reward_sentence
from rollout_ray.core.errors import ConfigError, TooManyErrors
from rollout_ray.core.records import Question, ScoredQuestion, Trajectory
from rollout_ray.data.question_set import load_questions
from rollout_ray.export.formats import export
from rollout_ray.report.html import write_report
from rollout_ray.results.merged_file import MergedFile
from rollout_ray.results.rescore import rescore
from rollout_ray.results.verify import verify
from rollout_ray.scoring.custom_reward import RewardSource, RewardSources, with_reward
from rollout_ray.scoring.scorer import part_table
from rollout_ray.scoring.user_code.conventions import RewardFunction, signature_of
from rollout_ray.scoring.user_code.process import Call, Limits, Reply, UserProcess
from rollout_ray.scoring.user_code.rewards import UserRewards, _check_signature
from rollout_ray.telemetry.error_share import refuse_failing_session, refuse_failures
from rollout_ray.telemetry.summary import Summary
from tests import misbehaving
from tests.conftest import ROOT, demo_rows
from tests.finished_runs import finished
from tests.test_merge import scored, trajectory
from tests.test_report import blocks

TEXTS = ("<think>\n2 + 2\n</think>\n<answer>\n4\n</answer>", "the answer is 5")
ROW = {"prompt": "2 + 2?", "solution": "4", "data_source": "sums", "extra_info": {"split": "train"}}
QUESTION = Question("q", "2 + 2?", "4", row=ROW)
CHAT = Question("q", ({"role": "user", "content": "2 + 2?"},), "4", row=ROW)
TRAJECTORIES = tuple(trajectory("q", n, full_text=text) for n, text in enumerate(TEXTS))


# Signatures of public recipes


def accuracy_reward(completions: list[list[dict[str, str]]], solution: list[str], **kwargs: Any) -> list[float | None]:
    """As in TRL's and Open R1's recipes: conversational completions, and a column of the data."""
    contents = [completion[0]["content"] for completion in completions]
    return [
        float(content.rstrip().endswith(f"{right}\n</answer>")) for content, right in zip(contents, solution, strict=True)
    ]


def format_reward(completions: list[list[dict[str, str]]], **kwargs: Any) -> list[float]:
    """As in Open R1's recipes."""
    pattern = r"^<think>\n.*?\n</think>\n<answer>\n.*?\n</answer>$"
    return [1.0 if re.match(pattern, c[0]["content"], re.DOTALL | re.MULTILINE) else 0.0 for c in completions]


def reward_len(completions: list[str], **kwargs: Any) -> list[float]:
    """As in TRL's quick start."""
    return [-abs(20 - len(completion)) for completion in completions]


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> dict[str, float]:
    """As verl's custom_reward_function."""
    assert data_source == "sums" and extra_info == {"split": "train"}
    right = ground_truth in solution_str
    return {"score": float(right), "acc": float(right), "length": float(len(solution_str))}


async def judged(
    prompts: list[str], completions: list[str], gold_answer: list[str], trainer_state: Any = None
) -> list[float]:
    """As TRL's asynchronous reward functions."""
    await asyncio.sleep(0)
    return [float(right in text) for right, text in zip(gold_answer, completions, strict=True)]


def with_ids(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
    return [float(len(ids)) for ids in completion_ids]


def own(question: Question, trajectories: Sequence[Trajectory]) -> list[Any]:
    return [{"source": len(question.row["data_source"]), "none": None}, None]


def called(function: Any, question: Question = QUESTION) -> list[Any]:
    reward = RewardFunction(function)
    result = reward.invoke(question, TRAJECTORIES)
    return reward.finish(asyncio.run(result) if reward.signature.is_async else result, TRAJECTORIES)


@pytest.mark.parametrize(
    ("function", "question", "values"),
    [
        (accuracy_reward, CHAT, [1.0, 0.0]),
        (format_reward, CHAT, [1.0, 0.0]),
        (reward_len, QUESTION, [-abs(20.0 - len(text)) for text in TEXTS]),
        (
            compute_score,
            QUESTION,
            [{"score": float(r), "acc": float(r), "length": float(len(t))} for r, t in zip((1, 0), TEXTS, strict=True)],
        ),
        (judged, QUESTION, [1.0, 0.0]),
        (own, QUESTION, [{"source": 4.0}, None]),
    ],
)
def test_a_function_with_a_known_signature_runs_unchanged(function: Any, question: Question, values: list[Any]) -> None:
    assert called(function, question) == values


def test_the_columns_that_a_function_names_are_known_before_the_run() -> None:
    assert signature_of(accuracy_reward).required == ("solution",) and signature_of(accuracy_reward).takes_all
    assert not signature_of(judged).takes_all and signature_of(judged).is_async
    assert signature_of(own).style == "question" and signature_of(max).style == "question"
    with pytest.raises(ConfigError, match="takes solution, which is no column of the data; the columns are prompt, gold"):
        _check_signature("accuracy", signature_of(accuracy_reward), ["prompt", "gold"])
    with pytest.raises(ConfigError, match="takes completion_ids, which a reward does not get"):
        _check_signature("ids", signature_of(with_ids), ["prompt"])


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ([1.0], "it returned 1 values for 2 trajectories"),
        (0.5, "it returned 0.5 for 2 trajectories"),
        ({"a": [1, 2]}, "Return a list with one value for each"),
        ([1.0, float("inf")], "it returned inf for a trajectory. Return a finite number, or None"),
        (["high", "low"], "could not convert string to float"),
    ],
)
def test_what_is_no_reward_is_refused(result: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        RewardFunction(own).finish(result, TRAJECTORIES)


def test_verls_score_may_stand_beside_texts() -> None:
    given = {"score": np.float32(1.0), "acc": np.bool_(True), "pred": "[INVALID]", "steps": 3, "why": None, "all": [1]}
    values = RewardFunction(compute_score).finish([given, {"score": None, "acc": 1}], TRAJECTORIES)
    assert values == [{"score": 1.0, "acc": 1.0, "steps": 3.0}, None]
    for bad in ({"score": "high"}, {"right": 1.0, "pred": "[INVALID]"}):
        with pytest.raises(ValueError, match="could not convert string to float"):
            RewardFunction(compute_score).finish([given, bad], TRAJECTORIES)


def errors_too(question: Question, trajectories: Sequence[Trajectory]) -> list[float]:
    return [-1.0 if t.finish_reason == "error" else 1.0 for t in trajectories]


@pytest.mark.parametrize(
    ("function", "values"),
    [
        (reward_len, [None, -5.0, None]),
        (compute_score, [None, {"score": 0.0, "acc": 0.0, "length": 15.0}, None]),
        (errors_too, [-1.0, 1.0, -1.0]),
    ],
)
def test_a_row_with_an_error_has_no_reward_of_a_function_that_cannot_see_it(function: Any, values: list[Any]) -> None:
    refused = trajectory("q", 0, full_text="", finish_reason="error")
    rows = (refused, TRAJECTORIES[1], refused)
    reward = RewardFunction(function)
    assert reward.finish(reward.invoke(QUESTION, rows), rows) == values
    if reward.signature.style != "question":
        assert reward.finish(reward.invoke(QUESTION, rows[:1]), rows[:1]) == [None]


def test_a_row_carries_the_columns_that_are_asked_for() -> None:
    from dataclasses import replace

    rows = [{"prompt": "p", "gold_answer": "1", "tests": ["a"], "bad": b"\xff"}]
    questions = load_questions(rows, RunConfig().data)
    assert [dict(q.row) for q in questions.questions()] == [{}]
    (question,) = replace(questions, row_columns=("tests", "bad")).questions()
    assert question.row == {"tests": ["a"], "bad": b"\xff"}


# Several rewards


class InProcess:
    """Stands in for the process of the user's functions: replies that a test gives."""

    def __init__(self, *replies: Reply) -> None:
        self._replies = replies

    def run(self, calls: Sequence[Call]) -> list[Reply]:
        assert [call.function for call in calls] == list(range(len(self._replies)))
        return list(self._replies)


def test_the_example_rewards_run_as_the_example_config_names_them() -> None:
    scoring = load_config(file=ROOT / "jobs" / "examples" / "rewards.yaml").scoring
    assert scoring.reward_weights == {"brevity": 0.1}
    values = [called(RewardSource(name).load()) for name in scoring.rewards.values()]
    assert values[0] == [1.0, 0.0] and all(0.9 < value < 1.0 for value in values[1])


def rewarded(names: dict[str, str], weights: dict[str, float], *replies: Reply, single: bool = False) -> ScoredQuestion:
    scoring = ScoringConfig(rewards=names, reward_weights=weights)
    sources = RewardSources({name: RewardSource(call) for name, call in names.items()}, not single)
    rewards = UserRewards(sources, scoring)
    rewards.process = InProcess(*replies)  # type: ignore[assignment]
    return rewards.apply([QUESTION], [scored("q", 2)])[0]


def test_named_rewards_stand_beside_their_weighted_sum() -> None:
    one = rewarded({"a": "m:a", "b": "m:b"}, {"b": 0.5}, Reply([1.0, None]), Reply([{"x": 2.0, "b": 4.0}, None]))
    assert [(t.reward, t.rewards) for t in one.trajectories] == [(4.0, {"a": 1.0, "b.x": 2.0, "b.b": 4.0}), (None, {})]
    stored = part_table([one]).column("trajectories").to_pylist()[0]
    assert stored[0]["rewards"] == [("a", 1.0), ("b.x", 2.0), ("b.b", 4.0)]


@pytest.mark.parametrize(
    ("weights", "reward", "words"),
    [
        ({"a": 0.1, "b": 0.0}, 0.1, "0.1 x a (m:a) plus 0 x b (m:b)"),
        ({"b": 0.5}, 1.5, "1 x a (m:a) plus 0.5 x b (m:b)"),
        ({"b": 0.0, "a.acc": 0.25}, 1.25, "1 x a (m:a) plus 0 x b (m:b) plus 0.25 x a.acc"),
    ],
)
def test_weights_reach_functions_that_return_dicts(weights: dict[str, float], reward: float, words: str) -> None:
    names = {"a": "m:a", "b": "m:b"}
    reply = Reply([{"score": 1.0, "acc": 1.0}, {"score": 1.0}])
    first, second = rewarded(names, weights, reply, reply).trajectories
    assert first.reward == reward and first.rewards == {"a": 1.0, "a.acc": 1.0, "b": 1.0, "b.acc": 1.0}
    assert second.rewards == {"a": 1.0, "b": 1.0}
    assert reward_sentence(ScoringConfig(rewards=names, reward_weights=weights)) == f"Reward: {words}."


def test_a_single_function_gives_the_reward_itself_and_verls_score_counts_alone() -> None:
    one = rewarded({"a": "m:a"}, {}, Reply([0.25, {"score": 1.0, "length": 40.0}]), single=True)
    assert [(t.reward, t.rewards) for t in one.trajectories] == [(0.25, None), (1.0, {"score": 1.0, "length": 40.0})]
    plain = rewarded({"a": "m:a"}, {}, Reply([0.25, None]), single=True)
    assert "rewards" not in part_table([plain]).column("trajectories").to_pylist()[0][0]


def test_a_failed_reward_is_a_row_with_the_reason() -> None:
    one = rewarded({"a": "m:a", "b": "m:b"}, {}, Reply([1.0, 1.0]), Reply(error="ValueError('no')"))
    for t in one.trajectories:
        assert (t.score_status, t.correct, t.reward, t.rewards) == ("error", None, None, None)
        assert t.error == "the reward b fails: ValueError('no')"
    assert one.trajectories[0].answer == "0"
    summary = Summary()
    summary.add(part_table([one]))
    with pytest.raises(
        TooManyErrors, match=r"2 of 2 trajectories have no reward, .*: the reward b fails: ValueError\('no'\)"
    ):
        refuse_failures(summary, 0.2, "Correct it")
    refuse_failures(summary, 1.0, "Correct it")
    assert not summary.too_many_errors, "a rescore is enough"


@pytest.mark.parametrize(
    ("questions", "failed", "before", "ends"),
    [(8, 1, 0, False), (49, 49, 0, False), (50, 10, 0, False), (50, 11, 0, True), (50, 50, 9_950, False)],
)
def test_a_session_is_judged_by_enough_questions_and_by_the_whole_run(
    questions: int, failed: int, before: int, ends: bool
) -> None:
    """Eight arms have 32 samples each: one bad question among the first is 256 failed trajectories."""
    session = Summary(questions=questions, trajectories=256 * questions, failures=Counter({"no": 256 * failed}))
    with pytest.raises(TooManyErrors, match="Correct the function") if ends else nullcontext():
        refuse_failing_session(session, 256 * before, 0.2)


def test_the_config_names_rewards_and_refuses_what_contradicts() -> None:
    cfg = load_config(
        ["--rewards", "a=m:a", "--rewards", "b=m:b", "--reward_weights", "b=0.5", "--reward_columns", "level"]
    )
    assert cfg.scoring.reward_columns == ["level"]
    assert reward_sentence(cfg.scoring) == "Reward: 1 x a (m:a) plus 0.5 x b (m:b)."
    assert RunConfig().identity().keys().isdisjoint({"scoring.rewards", "scoring.call_timeout_s"})
    for flags, words in (
        (["--rewards", "a=m:a", "--reward", "m:b"], "reward and rewards are both given; leave one of them out"),
        (["--rewards", "a=m.py"], "rewards takes module:function, such as my_rewards:score, not 'm.py'"),
        (["--reward_weights", "a=.inf"], "must be a finite number"),
        (
            ["--rewards", "brevity=m:a", "--reward_weights", "brevty=1"],
            "brevty, which is no reward; the rewards are brev",
        ),
        (["--rewards", "a=m:a", "--rewards", "a.b=m:b"], "rewards has a.b, a name for a value of its reward a; rename one"),
    ):
        with pytest.raises(ConfigError, match=re.escape(words)):
            load_config(flags)
    weighted = RunConfig(scoring={"reward_weights": {"own": 0.5}})
    assert with_reward(weighted, [reward_len, own])[0].scoring.reward_weights == {"own": 0.5}
    with pytest.raises(ConfigError, match="reward_weights names own, and no reward function is given"):
        with_reward(weighted, None)
    with pytest.raises(ConfigError, match=r"scoring\.reward is m:a, and a function is given as well"):
        with_reward(RunConfig(scoring={"reward": "m:a"}), [reward_len, own])
    cfg, sources = with_reward(RunConfig(), [reward_len, own])
    assert cfg.scoring.rewards == {"reward_len": f"{__name__}:reward_len", "own": f"{__name__}:own"} and sources.named
    with pytest.raises(ConfigError, match="two rewards have the name own"):
        with_reward(RunConfig(), [own, own])


NAMED = {"rewards": {"a": "m:a", "b": "m:b"}, "reward_weights": {"a": 2.0, "b.x": 0.5}}
ONE = {"reward": "m:a", "reward_weights": {"x": 0.5}}


@pytest.mark.parametrize(
    ("base", "flags", "after"),
    [
        (NAMED, ["--reward", "m:c"], ("m:c", {}, {})),
        (NAMED, ["--rewards", "b=m:c"], (None, {"b": "m:c"}, {"b.x": 0.5})),
        (NAMED, ["--reward_weights", "b=3"], (None, NAMED["rewards"], {"b": 3.0})),
        (NAMED, ["--rewards", "{}"], (None, {}, {})),
        (ONE, ["--rewards", "c=m:c"], (None, {"c": "m:c"}, {})),
        (ONE, ["--reward", "m:c"], ("m:c", {}, {})),
        (ONE, ["--reward", "null"], (None, {}, {})),
        (ONE, ["--beta", "0"], ("m:a", {}, {"x": 0.5})),
    ],
)
def test_given_reward_functions_replace_those_of_the_run(base: dict[str, Any], flags: list[str], after: Any) -> None:
    stored = RunConfig.model_validate({"scoring": base}).model_dump(mode="json")
    scoring = overlaid(stored, flags, {}, None).scoring
    assert (scoring.reward, scoring.rewards, scoring.reward_weights) == after


@pytest.mark.parametrize("layout", ["questions", "trajectories"])
def test_named_rewards_reach_report_export_verify_and_rescore(tmp_path: Path, layout: str) -> None:
    module = "rollout_ray.jobs.examples.trl_rewards"
    scoring = {"rewards": {n: f"{module}:{n}" for n in ("contains_gold", "brevity")}, "reward_weights": {"brevity": 0.1}}
    output = {"output_dir": str(tmp_path / "run"), "layout": layout}
    run = finished(tmp_path / "run", demo_rows(3), scoring=scoring, output=output)
    assert verify(run.uri).agrees
    export([run.uri], tmp_path / "rows.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    given = [t for row in rows for t in row["trajectories"] if t["reward"] is not None]
    for t in given:
        assert t["reward"] == pytest.approx(t["rewards"]["contains_gold"] + 0.1 * t["rewards"]["brevity"])
    export([run.uri], tmp_path / "flat.jsonl", "trajectories")
    flat = [json.loads(line) for line in (tmp_path / "flat.jsonl").read_text().splitlines()]
    assert [t["rewards"] for t in flat] == [t["rewards"] for row in rows for t in row["trajectories"]]
    Rollouts(f"{run.uri}/merged.parquet", Summary(), run).to_pandas().to_parquet(tmp_path / "frame.parquet")
    page = blocks(write_report(run.uri).path)
    terms = [t["terms"] for q in page["chunk-0"] for t in q["trajectories"]]
    assert [set(one) for one in terms] == [{"contains_gold", "brevity (x 0.1)"}] * len(given)
    done = rescore(run.uri, ["--reward_weights", "brevity=0"])
    with MergedFile(done.path) as merged:
        for _, stored in merged.batches():
            assert all(t["reward"] == t["rewards"]["contains_gold"] for s in stored for t in s.trajectories)


# Misbehaving code, in its process


NAMES = ["fine", "leaves", "aborts", "segfaults", "loops", "fills", "prints", "changes", "leaves_a_thread", "slow", "flaky"]


@pytest.fixture(scope="module")
def process() -> Iterator[UserProcess]:
    sources = [RewardSource(f"{misbehaving.__name__}:{name}") for name in NAMES]
    process = UserProcess(sources, Limits(timeout_s=3.0, memory_mib=700))
    yield process
    process.close()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("leaves", r"SystemExit\(3\)"),
        ("aborts", "its process ended"),
        ("segfaults", "its process ended with signal 11"),
        ("loops", r"it did not return within 3 s \(scoring.call_timeout_s\)"),
        ("fills", r"it used more than 700 MiB of memory \(scoring.function_memory_mib\)|MemoryError"),
        ("prints", None),
        ("leaves_a_thread", None),
        ("changes", None),
    ],
)
def test_misbehaving_code_costs_its_own_call(process: UserProcess, name: str, words: str | None) -> None:
    numbers = [0, NAMES.index(name), 0]
    first, second, third = process.run([Call(number, QUESTION, TRAJECTORIES) for number in numbers])
    assert first == Reply([1.0, 1.0]) and third.error is None
    if words is None:
        assert second == Reply([1.0, 1.0])
    else:
        assert second.error and re.search(words, second.error)


def test_asynchronous_calls_run_at_once_are_made_again_and_have_a_limit(process: UserProcess) -> None:
    slow, flaky = NAMES.index("slow"), NAMES.index("flaky")
    begun = time.monotonic()
    assert process.run([Call(slow, QUESTION, TRAJECTORIES)] * 30) == [Reply([1.0, 1.0])] * 30
    assert time.monotonic() - begun < 30 * 0.3
    hangs = Call(flaky, Question("hang", "", None), TRAJECTORIES)
    once = UserProcess([RewardSource(f"{misbehaving.__name__}:flaky")], Limits(timeout_s=0.5, retries=0))
    try:
        (late,) = once.run([hangs._replace(function=0)])
    finally:
        once.close()
    assert late.late and late.error == "it did not return within 0.5 s (scoring.call_timeout_s)"
    again = process.run([Call(flaky, Question(str(n), "", None), TRAJECTORIES) for n in range(5)])
    assert again == [Reply([1.0, 1.0])] * 5
