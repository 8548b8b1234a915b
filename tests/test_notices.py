"""What a config asks for and its user hardly wants is said before a run."""

from __future__ import annotations

from typing import Any

import pytest

from rollout_ray.config.arms import resolve_arms
from rollout_ray.config.notices import notices
from rollout_ray.config.schema import RunConfig


def said(**sections: Any) -> list[str]:
    config = RunConfig.model_validate(sections)
    return notices(config, resolve_arms(config))


def test_equal_samples_are_said() -> None:
    (greedy,) = said(arms={"arm_set": "greedy"}, sampling={"n_samples": 8})
    assert greedy.startswith("the arm greedy has temperature 0, so that all samples of a question are the same text")
    arms = [{"name": name, "samples": 2} for name in ("a", "b")]
    (likeliest,) = said(arms={"arm_list": arms}, sampling={"top_k": 1})
    assert likeliest.startswith("the arms a, b have top_k 1")


@pytest.mark.parametrize(
    ("stop", "template"), [(["\\n"], None), (["\\nQuestion:"], None), ([], "Q: {{ prompt }}\\nA:"), ([], "{{ prompt }}\\n")]
)
def test_a_backslash_where_a_line_break_is_meant_is_said(stop: list[str], template: str | None) -> None:
    (sentence,) = said(sampling={"stop": stop}, data={"prompt_template": template})
    assert "a backslash and a letter" in sentence


def test_ordinary_runs_say_nothing() -> None:
    assert not said()
    assert not said(arms={"arm_set": "greedy"})
    template = "{{ choices | join('\\n') }} $\\nabla f$\n"
    assert not said(sampling={"stop": ["\n\n", "\\nabla", "\\text"]}, data={"prompt_template": template})
