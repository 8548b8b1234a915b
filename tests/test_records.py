"""Test keys, seeds, and records that are pickled between processes."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout_ray.core import errors, records
from rollout_ray.core.records import (
    TRAJECTORY,
    TRAJECTORY_TOKENS,
    Arm,
    Completion,
    Generated,
    Question,
    RolloutRequest,
    Trajectory,
    sampling_seed,
)

KEY = (st.integers(0, 2**63 - 1), st.text(min_size=1, max_size=8), st.sampled_from(["a", "b"]), st.integers(0, 99))


@given(st.tuples(*KEY), st.tuples(*KEY))
def test_a_seed_belongs_to_one_key(one: tuple[int, str, str, int], other: tuple[int, str, str, int]) -> None:
    assert (sampling_seed(*one) == sampling_seed(*other)) == (one == other)
    assert 0 <= sampling_seed(*one) < 2**63


def test_a_seed_is_the_same_in_another_process() -> None:
    """The seed must not use Python's hash, which each process salts."""
    code = "from rollout_ray.core.records import sampling_seed; print(sampling_seed(42, 'q', 'wolfram_0', 3))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == sampling_seed(42, "q", "wolfram_0", 3) == 7627872151229602251


def test_the_trajectory_schema_is_the_trajectory_record() -> None:
    assert [f.name for f in TRAJECTORY_TOKENS] + ["rewards"] == [f.name for f in dataclasses.fields(Trajectory)]
    assert [f.name for f in TRAJECTORY] == [f.name for f in TRAJECTORY_TOKENS][: len(TRAJECTORY)]


def test_what_crosses_a_process_pickles() -> None:
    question = Question("q", ({"role": "user", "content": "x"},), "1")
    request = RolloutRequest(1, 0, question, 0, 2)
    generated = Generated(request, (Completion(0, "t", 1, 2, "stop", "engine-0"),))
    for value in (generated, Arm("a", None, 0.1, 1.0, -1, 1.0, 8, 1)):
        assert pickle.loads(pickle.dumps(value)) == value
    for name in ("ConfigError", "EngineError", "LedgerError"):
        error = pickle.loads(pickle.dumps(getattr(errors, name)("why")))
        assert str(error) == "why" and error.exit_code == getattr(errors, name).exit_code


def test_records_are_frozen() -> None:
    question = Question("q", "x", None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        question.prompt = "y"  # type: ignore[misc]
    assert records.schema_version(tokens=False) == 2 and records.schema_version(tokens=True) == 3
