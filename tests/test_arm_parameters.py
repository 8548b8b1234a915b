"""What an arm asks of vLLM is what SamplingParams holds, or is refused by the name of the parameter. No engine."""

from __future__ import annotations

from typing import Any

import pytest

from rollout_ray import RunConfig
from rollout_ray.actors.vllm_backend.sampling import arm_parameters, split_stops
from rollout_ray.config.arms import resolve_arms
from rollout_ray.core.errors import ConfigError


def parameters(extra: dict[str, Any], **sampling: Any) -> dict[str, Any]:
    arm = {"name": "odd", "temperature": 0.5, "max_tokens": 10, "extra_sampling": extra}
    config = RunConfig.model_validate({"arms": {"arm_list": [arm]}, "sampling": sampling})
    return arm_parameters(resolve_arms(config)[0], config.sampling)


def test_an_arm_s_parameters_are_those_of_vllm(long_computation: None) -> None:
    found = parameters({"min_p": 0.05, "logit_bias": {"7": 2.0}}, stop=["x"], top_k=-1)
    assert found["temperature"] == 0.5 and found["stop"] == ["x"] and found["top_k"] == 0
    assert found["min_p"] == 0.05 and found["logit_bias"] == {7: 2.0}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_p", "5e--2"),
        ("min_p", 3.0),
        ("frequency_penalty", "x"),
        ("min_tokens", "3"),
        ("logit_bias", "x"),
        ("bad_words", 3),
        ("structured_outputs", {"nonsense": 1}),
        ("min_q", 0.1),
    ],
)
def test_a_parameter_that_vllm_refuses_is_named(name: str, value: Any, long_computation: None) -> None:
    with pytest.raises(ConfigError, match=rf"^vLLM refuses extra_sampling: {name} .* of the arm odd: .*; correct it$"):
        parameters({"presence_penalty": 0.5, name: value})


HIDDEN = {"<|end|>": 4}


def stops(*given: str, **arm: Any) -> tuple[list[str], list[int]]:
    config = RunConfig.model_validate({"arms": {"arm_list": [{"name": "a", **arm}]}, "sampling": {"stop": list(given)}})
    return split_stops(resolve_arms(config)[0], HIDDEN)


def test_a_stop_string_that_is_a_special_token_becomes_its_id(long_computation: None) -> None:
    assert stops("Answer", "<|end|>") == (["Answer"], [4])
    assert stops("Answer", "<|end|>", stop=["own"]) == (["own"], [])
    shows_all = {"extra_sampling": {"skip_special_tokens": False}}
    assert stops("<|end|>", **shows_all) == (["<|end|>"], [])
    with pytest.raises(
        ConfigError, match=r"'<\|end\|>\\n' of the arm a holds the special token <\|end\|>, which no output"
    ):
        stops("<|end|>\n")
    arm = {"name": "a", "stop": ["<|end|>"], "extra_sampling": {"stop_token_ids": [7]}}
    config = RunConfig.model_validate({"arms": {"arm_list": [arm]}})
    found = arm_parameters(resolve_arms(config)[0], config.sampling, HIDDEN)
    assert found["stop_token_ids"] == [7, 4] and found["stop"] is None
