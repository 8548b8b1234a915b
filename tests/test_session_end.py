"""How a session ends when rewards fail too often: it saves finished samples, as after Ctrl-C."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from rollout_ray.core.errors import BudgetSpent, Interrupted, RolloutError, TooManyErrors
from rollout_ray.driver import session as module
from rollout_ray.telemetry.summary import Summary


class Session:
    """Stands in for engines and scorers. `run` ends with an error."""

    def __init__(self, error: BaseException, *, complete: bool) -> None:
        self.error, self.complete = error, complete
        self.calls: list[str] = []

    def run(self, progress: Any) -> None:
        raise self.error

    def take_finished(self) -> None:
        self.calls.append("take_finished")

    def save(self) -> None:
        self.calls.append("save")

    def stopped(self, *, spent: bool) -> Interrupted:
        self.calls.append("stopped")
        return BudgetSpent("spent") if spent else Interrupted("stopped")

    def close(self) -> None:
        self.calls.append("close")

    def summary(self) -> Summary:
        return Summary()


@pytest.mark.parametrize(
    ("error", "raised"),
    [(KeyboardInterrupt(), Interrupted), (BudgetSpent(), BudgetSpent), (TooManyErrors("half fail"), TooManyErrors)],
)
@pytest.mark.parametrize("complete", [False, True])
def test_a_session_that_ends_early_saves_first(
    error: BaseException, raised: type[RolloutError], complete: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(error, complete=complete)
    monkeypatch.setattr(module, "_Session", lambda *_: session)
    context: Any = SimpleNamespace(progress=nullcontext())
    pool: Any = SimpleNamespace(replica_set=object(), scorers=None)
    run: Any = None
    with nullcontext() if complete else pytest.raises(raised):
        module.generate_missing(run, context, pool)
    assert session.calls == ["take_finished", "save", *([] if complete else ["stopped"]), "close"]
