"""One Grader for all tables of grades."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rollout_ray.scoring.grader import Grader


@pytest.fixture(scope="session")
def grader() -> Iterator[Grader]:
    with Grader(timeout_s=10) as one:
        yield one
