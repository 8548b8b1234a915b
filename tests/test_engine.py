"""The engine actor around real vLLM on the CPU, and around the simulated backend, as Ray actors."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError, RayTaskError
from transformers import AutoModelForCausalLM, AutoTokenizer

from rollout_ray.actors.backend import BackendInfo
from rollout_ray.actors.engine.actor import EngineActor
from rollout_ray.actors.engine.exchange import Exchange
from rollout_ray.actors.engine.launch import LaunchSpec
from rollout_ray.config.schema import RunConfig
from rollout_ray.core.errors import ConfigError
from rollout_ray.core.records import Completion, Generated, Question, RolloutRequest, sample_specs
from rollout_ray.models.checkpoints import Policy
from rollout_ray.models.paths import model_folder
from rollout_ray.models.resolved_run import resolve
from rollout_ray.telemetry.engine_stats import EngineStats
from tests.conftest import OWN_PROCESS, demo_rows
from tests.test_checkpoints import Tensors, checkpoint

ARMS = [
    {"name": "greedy", "temperature": 0.0, "max_tokens": 200},
    {"name": "short", "temperature": 1.0, "max_tokens": 5},
    {"name": "warm", "temperature": 1.0, "max_tokens": 200, "samples": 3, "top_p": 0.9, "top_k": 20},
]


def config(**sections: Any) -> RunConfig:
    return RunConfig.model_validate({"arms": {"arm_list": ARMS}, "engine": {"max_model_len": 512}, **sections})


def start(cfg: RunConfig, name: str = "engine-0", own_process: str = "0") -> Any:
    environment = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_ENABLE_V1_MULTIPROCESSING": own_process}
    spec = replace(LaunchSpec.of(resolve(cfg), gpus=0, threads=1, name=name), environment=environment)
    return ray.remote(EngineActor).options(num_cpus=1).remote(spec)


def ready(actor: Any, cfg: RunConfig) -> BackendInfo:
    """Starts the engine and has it take up a run."""
    ray.get(actor.start.remote())
    info: BackendInfo = ray.get(actor.begin.remote(resolve(cfg)))
    return info


def request(ordinal: int, question: Question, cfg: RunConfig, scorer_index: int = 0) -> RolloutRequest:
    return RolloutRequest(ordinal, scorer_index, question, 0, len(sample_specs(resolve(cfg).arms)))


def exchange(actor: Any, *arguments: Any, num_scorers: int = 1) -> tuple[Exchange, list[list[Generated]]]:
    """What the engine tells, and what it hands over for each lane."""
    told, *finished = ray.get(actor.exchange.options(num_returns=1 + num_scorers).remote(num_scorers, *arguments))
    return told, [generated or [] for generated in finished]


def exchange_all(
    actor: Any, requests: Sequence[RolloutRequest], stats: EngineStats | None = None
) -> dict[int, tuple[Completion, ...]]:
    """Gives the requests and exchanges until nothing is unfinished; completions by ordinal. Adds up `stats`."""
    found: dict[int, tuple[Completion, ...]] = {}
    answer, finished = exchange(actor, requests, 1.0, 0.05)
    while True:
        if stats:
            stats.add(answer.stats)
        for generated in finished:
            assert {(g.request.ordinal, g.request.first) for g in generated} <= set(answer.chunks)
            found |= {g.request.ordinal: g.completions for g in generated}
        if not answer.unfinished:
            return found
        answer, finished = exchange(actor, [], 1.0, 0.05)


@pytest.fixture(scope="module")
def engine(local_ray: None) -> Iterator[tuple[Any, BackendInfo]]:
    actor = start(config())
    yield actor, ready(actor, config())
    ray.kill(actor)


@pytest.fixture(scope="module")
def answers(engine: tuple[Any, BackendInfo]) -> dict[int, tuple[Completion, ...]]:
    """Ten questions, a faulty one (10), one too long for the model (11) and a chat (12)."""
    questions = [Question(f"q{i}", row["prompt"], row["gold_answer"]) for i, row in enumerate(demo_rows(10))]
    questions.append(Question("fault", "", None, "the prompt is null"))
    questions.append(Question("long", "word " * 600, None))
    questions.append(Question("chat", ({"role": "user", "content": questions[0].prompt},), None))
    return exchange_all(engine[0], [request(i, q, config()) for i, q in enumerate(questions)])


def test_every_limit_is_explicit(engine: tuple[Any, BackendInfo]) -> None:
    settings = engine[1].settings
    assert settings["max_num_seqs"] == engine[1].max_num_seqs == 256
    assert settings["max_num_batched_tokens"] >= settings["max_model_len"] == 512
    assert settings["distributed_executor_backend"] == "uni"


def test_every_draw_comes_back_once_and_in_order(answers: dict[int, tuple[Completion, ...]]) -> None:
    assert set(answers) == set(range(13))
    for completions in answers.values():
        assert [c.sample_index for c in completions] == [0, 1, 2, 3, 4]
        assert {c.engine for c in completions} == {"engine-0"}


def test_finish_reasons_and_token_counts(answers: dict[int, tuple[Completion, ...]]) -> None:
    for ordinal in range(10):
        greedy, short, *warm = answers[ordinal]
        assert greedy.finish_reason == "stop" and "Answer:" in greedy.full_text and 10 < greedy.num_tokens < 200
        assert (short.finish_reason, short.num_tokens) == ("length", 5)
        assert all(c.finish_reason in ("stop", "length") for c in warm)
        assert len({c.num_prompt_tokens for c in answers[ordinal]}) == 1


def test_samples_of_one_arm_differ(answers: dict[int, tuple[Completion, ...]]) -> None:
    assert any(len({c.full_text for c in answers[i][2:]}) > 1 for i in range(10))


def test_greedy_is_what_transformers_generates(answers: dict[int, tuple[Completion, ...]]) -> None:
    folder = model_folder("demo")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    agreeing = 0
    for ordinal, row in enumerate(demo_rows(10)):
        tokens = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
        output = model.generate(**tokens, do_sample=False, max_new_tokens=200)
        length = tokens["input_ids"].shape[1]
        assert answers[ordinal][0].num_prompt_tokens == length
        agreeing += tokenizer.decode(output[0, length:], skip_special_tokens=True) == answers[ordinal][0].full_text
    assert agreeing >= 9  # bfloat16 rounds differently in the two; a near tie may fall the other way


def test_a_row_that_cannot_be_asked_is_an_error_with_its_reason(answers: dict[int, tuple[Completion, ...]]) -> None:
    for ordinal, reason in ((10, "the prompt is null"), (11, "tokens and max_model_len is 512")):
        for completion in answers[ordinal]:
            assert completion.finish_reason == "error" and completion.full_text == ""
            assert completion.error and reason in completion.error


def test_a_chat_prompt_is_the_same_question(answers: dict[int, tuple[Completion, ...]]) -> None:
    assert answers[12][0].full_text == answers[0][0].full_text


def test_an_equal_key_draws_an_equal_text(engine: tuple[Any, BackendInfo]) -> None:
    question = Question("again", demo_rows(1)[0]["prompt"], None)
    first = exchange_all(engine[0], [request(0, question, config())])[0]
    second = exchange_all(engine[0], [request(5, question, config())])[5]
    assert [c.full_text for c in first] == [c.full_text for c in second]
    other = exchange_all(engine[0], [request(0, Question("other", question.prompt, None), config())])[0]
    assert other[0].full_text == first[0].full_text
    assert [c.full_text for c in other[2:]] != [c.full_text for c in first[2:]]


@pytest.mark.parametrize("own_process", ["0", OWN_PROCESS])
def test_what_a_run_left_never_reaches_the_next(local_ray: None, own_process: str) -> None:
    """An interrupted run's requests are dropped while vLLM decodes them: by the next run, and by an update."""
    cfg = config()
    actor = start(cfg, own_process=own_process)
    ready(actor, cfg)
    questions = [Question(f"q{i}", row["prompt"], None) for i, row in enumerate(demo_rows(40))]
    expected = exchange_all(actor, [request(0, questions[0], cfg)])[0]
    assert_counted(actor, cfg)
    for update in (None, Policy(model_folder("demo"), "the same weights", 7)):
        left = [request(i, question, cfg) for i, question in enumerate(reversed(questions))]
        assert exchange(actor, left, 0.0, 0.0)[0].unfinished > 0
        if update:
            assert ray.get(actor.update_weights.remote(update)) > 0
        ray.get(actor.begin.remote(resolve(cfg)))
        found = exchange_all(actor, [request(0, questions[0], cfg)])
        assert set(found) == {0}
        assert [c.full_text for c in found[0]] == [c.full_text for c in expected]
        assert {c.policy_version for c in found[0]} == {7 if update else 0}
    ray.kill(actor)


def assert_counted(actor: Any, cfg: RunConfig) -> None:
    """The engine counts what it hands over, and the second of two equal questions finds its prompt in the cache."""
    question = Question("long", " ".join(row["prompt"] for row in demo_rows(5)), None)
    first, second = EngineStats(), EngineStats()
    for stats in (first, second):
        ((_, completions),) = exchange_all(actor, [request(0, question, cfg)], stats).items()
        assert stats.generated_tokens == sum(c.num_tokens for c in completions)
        assert stats.prompt_tokens == sum(c.num_prompt_tokens for c in completions)
        assert stats.steps >= max(c.num_tokens for c in completions)
        assert (stats.running, stats.waiting, stats.preemptions) == (0, 0, 0) and stats.kv_use < 0.5
    assert second.cached_tokens > 0.5 * second.prompt_tokens and second.idle_seconds > 0


def test_lanes_get_payloads_of_their_own(engine: tuple[Any, BackendInfo]) -> None:
    rows = demo_rows(4)
    requests = [
        request(i, Question(f"l{i}", row["prompt"], None), config(), scorer_index=i % 2) for i, row in enumerate(rows)
    ]
    by_scorer: dict[int, set[int]] = {0: set(), 1: set(), 2: set()}
    answer, finished = exchange(engine[0], requests, 1.0, 0.05, num_scorers=3)
    while True:
        for scorer_index, generated in enumerate(finished):
            by_scorer[scorer_index] |= {g.request.ordinal for g in generated}
        if not answer.unfinished:
            break
        answer, finished = exchange(engine[0], [], 1.0, 0.05, num_scorers=3)
    assert by_scorer == {0: {0, 2}, 1: {1, 3}, 2: set()}


def test_stop_strings_and_engine_extra(local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's path counts from the working folder of the run, though the head was started elsewhere."""
    shutil.copytree(model_folder("demo"), tmp_path / "models" / "demo")
    monkeypatch.chdir(tmp_path)
    cfg = config(
        model={"model_path": "models/demo"},
        arms={"arm_list": [{"name": "greedy", "temperature": 0.0}]},
        sampling={"stop": ["Answer"]},
        engine={"max_model_len": 512, "extra": {"max_num_batched_tokens": 1024, "disable_log_stats": True}},
    )
    actor = start(cfg)
    assert ready(actor, cfg).settings["max_num_batched_tokens"] == 1024
    question = Question("q", demo_rows(1)[0]["prompt"], None)
    (completion,) = exchange_all(actor, [request(0, question, cfg)])[0]
    assert completion.finish_reason == "stop" and "Step" in completion.full_text and "Answer" not in completion.full_text
    assert_counted(actor, cfg)  # from the outputs, since vLLM was told not to
    ray.kill(actor)


def test_a_model_that_only_the_driver_sees_is_refused_on_the_node(local_ray: None) -> None:
    run = replace(resolve(config()), model_path="/nowhere/model", policy=Policy("/nowhere/model", "/nowhere/model"))
    actor = ray.remote(EngineActor).options(num_cpus=1).remote(LaunchSpec.of(run, gpus=0, threads=1))
    with pytest.raises(RayTaskError, match="model_path /nowhere/model is no folder") as raised:
        ray.get(actor.start.remote())
    assert isinstance(raised.value.cause, ConfigError)
    ray.kill(actor)


def test_a_part_that_the_weights_lack_fails_the_start(local_ray: None, tmp_path: Path) -> None:
    """vLLM packs it with others into one matrix, and would compute with what the memory held before."""

    def without_keys(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.endswith("k_proj.weight")]:
            del tensors[name]

    model = {"model_path": checkpoint(tmp_path / "lacking", without_keys), "tokenizer_path": model_folder("demo")}
    actor = start(config(model=model))
    with pytest.raises(RayTaskError, match=r"lacks a part of model\.layers\.0\.self_attn\.qkv_proj\.weight") as raised:
        ray.get(actor.start.remote())
    assert isinstance(raised.value.cause, ConfigError)
    ray.kill(actor)


def simulated(**faults: float) -> RunConfig:
    return config(engine={"backend": "simulated", "simulated": {"sim_tokens_per_second": 1e6, **faults}})


def test_the_simulated_engine_gives_equal_texts_for_equal_keys(local_ray: None) -> None:
    cfg = simulated()
    requests = [request(i, Question(f"q{i}", "how many", None), cfg) for i in range(20)]
    texts = []
    for name in ("engine-0", "engine-1"):
        actor = start(cfg, name)
        ready(actor, cfg)
        found = exchange_all(actor, requests)
        assert set(found) == set(range(20))
        texts.append([c.full_text for i in range(20) for c in found[i]])
        ray.kill(actor)
    assert texts[0] == texts[1]


@pytest.mark.parametrize("backend", ["simulated", "vllm"])
def test_an_engine_gives_back_what_its_backend_does_not_hold_yet(local_ray: None, backend: str) -> None:
    cfg = config(engine={"backend": backend, "max_num_seqs": 8, "max_model_len": 512})
    rows = demo_rows(8)
    questions = [Question(f"q{i}", row["prompt"], None) for i, row in enumerate(rows)]
    questions[6] = Question("fault", "", None, "the prompt is null")
    actor = start(cfg)
    ready(actor, cfg)
    requests = [request(i, q, cfg) for i, q in enumerate(questions)]
    answer, finished = exchange(actor, requests, 60.0, 60.0, 12)
    found: list[Generated] = []
    while True:
        found += [g for generated in finished for g in generated]
        if answer.returned:
            cuts = dict(answer.returned)
            assert answer.unfinished <= 35 - 12
        if not answer.unfinished:
            break
        answer, finished = exchange(actor, [], 1.0, 0.05, 0)
    ray.kill(actor)
    assert cuts == {(7, 0): 0, (5, 0): 0, (4, 0): 3}
    assert {(g.request.ordinal, g.request.first, g.request.stop) for g in found} == {
        *((i, 0, 5) for i in (0, 1, 2, 3, 6)),
        (4, 0, 3),
    }
    for generated in found:
        assert [c.sample_index for c in generated.completions] == list(range(generated.request.stop))


@pytest.mark.parametrize(("backend", "own_process"), [("simulated", "0"), ("vllm", "0"), ("vllm", OWN_PROCESS)])
def test_it_gives_back_all_that_is_not_begun_and_ends_what_is(local_ray: None, backend: str, own_process: str) -> None:
    """The backend holds an eighth more than it decodes at once, and a batch more where its core is apart."""
    cfg = config(
        arms={"arm_list": [{"name": "long", "samples": 5, "max_tokens": 300}]},
        engine={
            "backend": backend,
            "max_num_seqs": 16,
            "max_model_len": 512,
            "kv_cache_gib": 0.1,
            "simulated": {"sim_tokens_per_second": 800, "sim_mean_tokens": 1e6},
        },
        sampling={"ignore_eos": True},
    )
    actor = start(cfg, own_process=own_process)
    ready(actor, cfg)
    requests = [request(i, Question(f"q{i}", row["prompt"], None), cfg) for i, row in enumerate(demo_rows(8))]
    answer, finished = exchange(actor, requests, 0.1, 0.0)
    while answer.stats.running < 16:
        assert answer.unfinished == 40
        answer, finished = exchange(actor, [], 0.1, 0.0)
    stops = {(r.ordinal, r.first): r.stop for r in requests}
    chunks: dict[tuple[int, int], int] = {}
    while answer.unfinished:
        answer, finished = exchange(actor, [], 1.0, 0.0, answer.unfinished)
        stops |= dict(answer.returned)
        chunks |= {
            (g.request.ordinal, g.request.first): len(g.completions) for scorer_index in finished for g in scorer_index
        }
    ray.kill(actor)
    assert chunks == {chunk: stop for chunk, stop in stops.items() if stop}
    assert sum(stops.values()) == 16


def test_the_simulated_engine_refuses_and_dies_as_told(local_ray: None) -> None:
    cfg = simulated(sim_error_rate=1.0)
    actor = start(cfg)
    ready(actor, cfg)
    (completions,) = exchange_all(actor, [request(0, Question("q", "x", None), cfg)]).values()
    assert {c.finish_reason for c in completions} == {"error"}
    ray.kill(actor)
    cfg = simulated(sim_death_rate=1.0)
    actor = start(cfg)
    ready(actor, cfg)
    with pytest.raises(RayActorError):
        exchange_all(actor, [request(0, Question("q", "x", None), cfg)])
