"""The stored tokens and log-probabilities against transformers in float32: one real engine on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import ray
from transformers import AutoTokenizer

from rollout_ray.config.schema import RunConfig
from rollout_ray.core.records import Completion, Question
from rollout_ray.models.paths import model_folder
from rollout_ray.models.resolved_run import resolve
from tests.conftest import demo_rows
from tests.test_engine import exchange_all, request, start
from tests.transformers_logprobs import Reference, Sampling

BOUND = 1e-4  # of a difference; both compute in float32, with other kernels
QUESTIONS = [Question(f"q{i}", row["prompt"], None) for i, row in enumerate(demo_rows(4))]
SETTINGS = {
    "greedy": Sampling(temperature=0.0),
    "greedy-penalty": Sampling(temperature=0.0, repetition_penalty=1.3),
    "cooler": Sampling(temperature=0.7),
    "plain": Sampling(),
    "nucleus": Sampling(top_p=0.8),
    "top-k": Sampling(temperature=0.7, top_k=5),
    "all": Sampling(1.0, 0.9, 20, 1.2, 0.5, 0.3),
}


def config(settings: dict[str, Sampling], **sampling: Any) -> RunConfig:
    penalties = ("presence_penalty", "frequency_penalty")
    arms = []
    for name, setting in settings.items():
        values = vars(setting)
        extra = {key: values[key] for key in penalties}
        arms.append({"name": name, "extra_sampling": extra} | {k: v for k, v in values.items() if k not in penalties})
    return RunConfig.model_validate(
        {
            "arms": {"arm_list": arms},
            "engine": {"max_model_len": 512, "dtype": "float32"},
            "sampling": {"max_tokens": 60, **sampling},
            "output": {"tokens": True},
        }
    )


@pytest.fixture(scope="module")
def engine(local_ray: None) -> Iterator[Any]:
    actor = start(config(SETTINGS))
    ray.get(actor.start.remote())
    yield actor
    ray.kill(actor)


def drawn(engine: Any, cfg: RunConfig) -> list[tuple[str, Completion]]:
    """Each completion with the name of its arm."""
    ray.get(engine.begin.remote(resolve(cfg)))
    answers = exchange_all(engine, [request(number, question, cfg) for number, question in enumerate(QUESTIONS)])
    names = [arm.name for arm in cfg.arms.arm_list]
    return [(name, one) for done in answers.values() for name, one in zip(names, done, strict=True)]


def test_log_probabilities_are_those_of_transformers_and_ids_give_the_text(engine: Any) -> None:
    reference, tokenizer = Reference(model_folder("demo")), AutoTokenizer.from_pretrained(model_folder("demo"))
    worst = dict.fromkeys(SETTINGS, 0.0)
    for name, one in drawn(engine, config(SETTINGS)):
        assert one.token_ids is not None and one.logprobs is not None and one.prompt_token_ids is not None
        assert len(one.token_ids) == len(one.logprobs) == one.num_tokens
        assert len(one.prompt_token_ids) == one.num_prompt_tokens
        assert tokenizer.decode(one.token_ids, skip_special_tokens=True) == one.full_text
        assert (one.token_ids[-1] == tokenizer.eos_token_id) == (one.finish_reason == "stop")
        expected = reference.logprobs(one.prompt_token_ids, one.token_ids, SETTINGS[name])
        differences = [abs(a - b) for a, b in zip(one.logprobs, expected, strict=True)]
        worst[name] = max(worst[name], *differences)
    print({name: f"{difference:.1e}" for name, difference in worst.items()})
    assert max(worst.values()) < BOUND


def test_a_stop_string_keeps_its_tokens(engine: Any) -> None:
    """vLLM decodes such outputs itself, and may sample beyond the string."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder("demo"))
    done = drawn(engine, config({"plain": Sampling()}, stop=["\n"]))
    stopped = [one for _, one in done if one.finish_reason == "stop"]
    for one in stopped:
        assert one.token_ids is not None and one.logprobs is not None
        text = tokenizer.decode(one.token_ids, skip_special_tokens=True)
        assert len(one.token_ids) == len(one.logprobs) == one.num_tokens and text.startswith(one.full_text)
    assert any("\n" in tokenizer.decode(one.token_ids) for one in stopped)
