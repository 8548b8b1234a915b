"""Presets, overriding and prompts."""

from __future__ import annotations

import pytest

from rollout_ray.config.arms import (
    chat_messages,
    default_max_model_len,
    problem_text,
    raw_text,
    resolve_arms,
    without_system_role,
)
from rollout_ray.config.schema import RunConfig
from rollout_ray.core.records import Arm, sample_specs


def resolve(**sections: object) -> tuple[Arm, ...]:
    return resolve_arms(RunConfig.model_validate(sections))


def test_regime_w_is_the_default() -> None:
    arms = resolve()
    assert [a.name for a in arms] == [f"{kind}_{i}" for kind in ("wolfram", "maudlin") for i in range(4)]
    assert [a.temperature for a in arms] == [0.2, 0.3, 0.4, 0.5] * 2
    assert [a.top_p for a in arms] == [0.95] * 4 + [0.90] * 4
    assert {a.max_tokens for a in arms} == {1024} and {a.samples for a in arms} == {1}
    assert all("Answer: <number>" in (a.system_prompt or "") for a in arms)
    assert default_max_model_len(RunConfig()) == 2048


def test_the_probes() -> None:
    probes = resolve(arms={"arm_set": "regime-w-probes"})[8:]
    assert [(a.name, a.probe_role, a.temperature) for a in probes] == [
        ("wolfram_standard", "A", 0.3),
        ("wolfram_rephrase", "A'", 0.3),
        ("maudlin_cf1", "CF1", 0.5),
    ]
    assert len({a.system_prompt for a in probes}) == 3


def test_samples_and_greedy() -> None:
    (samples,) = resolve(arms={"arm_set": "samples"})
    assert (samples.samples, samples.temperature, samples.top_p, samples.max_tokens) == (8, 1.0, 0.95, 2048)
    assert samples.system_prompt is None
    (greedy,) = resolve(arms={"arm_set": "greedy"})
    assert (greedy.temperature, greedy.samples) == (0.0, 1)
    assert default_max_model_len(RunConfig.model_validate({"arms": {"arm_set": "samples"}})) is None


def test_sampling_overrides_a_preset_and_fills_in_a_custom_arm() -> None:
    assert {a.temperature for a in resolve(sampling={"temperature": 0.7})} == {0.7}
    assert {a.samples for a in resolve(sampling={"n_samples": 3})} == {3}
    own = resolve(
        arms={"arm_list": [{"name": "a", "temperature": 0.1, "samples": 2}, {"name": "b"}]},
        sampling={"temperature": 0.7, "max_tokens": 9, "top_k": 5, "repetition_penalty": 1.1},
    )
    assert [(a.temperature, a.samples, a.max_tokens, a.top_k, a.repetition_penalty) for a in own] == [
        (0.1, 2, 9, 5, 1.1),
        (0.7, 1, 9, 5, 1.1),
    ]


def test_draws_put_arms_of_one_system_prompt_side_by_side() -> None:
    arms = resolve(
        arms={
            "arm_list": [
                {"name": "a", "system_prompt": "x", "samples": 2},
                {"name": "b", "system_prompt": "y"},
                {"name": "c", "system_prompt": "x"},
            ]
        }
    )
    assert [(d.arm.name, d.sample) for d in sample_specs(arms)] == [("a", 0), ("a", 1), ("c", 0), ("b", 0)]


def test_messages() -> None:
    assert chat_messages("q", None) == [{"role": "user", "content": "q"}]
    assert chat_messages("q", "s") == [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    chat = ({"role": "system", "content": "own"}, {"role": "user", "content": "q"})
    assert chat_messages(chat, None) == list(chat)
    assert chat_messages(chat, "s")[0] == {"role": "system", "content": "s\n\nown"}
    assert chat[0]["content"] == "own"


def test_without_a_system_role() -> None:
    assert without_system_role(chat_messages("q", "s")) == [{"role": "user", "content": "s\n\nq"}]
    assert without_system_role(chat_messages("q", None)) == [{"role": "user", "content": "q"}]


@pytest.mark.parametrize(
    ("prompt", "system", "expected"),
    [("q", "s", "s\n\nProblem: q\nSolution:"), ("q", None, "Problem: q\nSolution:")],
)
def test_problem_text(prompt: str, system: str | None, expected: str) -> None:
    assert problem_text(prompt, system) == expected


def test_raw_text() -> None:
    assert raw_text("q\n", None) == "q\n" and raw_text("q", "s") == "s\n\nq"
    assert raw_text(({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}), None) == "a\n\nb"
