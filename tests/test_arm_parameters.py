"""What an arm asks of vLLM is what SamplingParams holds, or is refused by the name of the parameter. No engine."""

from __future__ import annotations

from typing import Any

import pytest

from rollout_ray import RunConfig
from rollout_ray.actors.vllm_backend.sampling import arm_parameters
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
