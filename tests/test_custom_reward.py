"""Loading a reward of the user's own: from the working folder, as a function, and in another process."""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from rollout_ray.config.loading import load_config
from rollout_ray.core.errors import ConfigError
from rollout_ray.core.records import Question, Trajectory
from rollout_ray.scoring.custom_reward import RewardSource

QUESTION = Question("q", "What is 3 + 4?", "7")
MODULE = "helper = 0.25\ndef score(question, trajectories):\n    return [helper for _ in trajectories]\nnumber = 3\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a module of the user's, in a process of the console script: `rollout` has no '' on its path."""
    (tmp_path / "my_own_rewards.py").write_text(MODULE)
    (tmp_path / "broken_rewards.py").write_text("raise RuntimeError('no licence')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield tmp_path
    sys.modules.pop("my_own_rewards", None)


def test_a_module_beside_the_working_folder_is_found_and_comes_last(folder: Path) -> None:
    assert RewardSource("my_own_rewards:score").load()(QUESTION, ()) == []
    assert sys.path[-1] == str(folder)


def test_a_scorer_elsewhere_finds_the_module_of_the_driver(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = pickle.dumps(RewardSource("my_own_rewards:score"))
    monkeypatch.chdir(tmp_path_factory.mktemp("scorer"))
    assert pickle.loads(sent).load()(QUESTION, [None]) == [0.25]


def test_a_function_of_a_notebook_is_sent_with_what_it_needs() -> None:
    bonus = 0.5

    def halves(question: Question, trajectories: Sequence[Trajectory]) -> list[float | None]:
        return [bonus for _ in trajectories]

    source = RewardSource.of_function(halves)
    assert source.name == f"{__name__}:halves"
    there = pickle.loads(pickle.dumps(source)).load()
    assert there is not halves and there(QUESTION, [None, None]) == [0.5, 0.5]


def test_what_cannot_be_sent_or_named_is_refused() -> None:
    lock = threading.Lock()

    def guarded(question: Question, trajectories: Sequence[Trajectory]) -> list[float | None]:
        with lock:
            return []

    with pytest.raises(ConfigError, match=r"the reward guarded cannot be sent to the scorers: cannot pickle"):
        RewardSource.of_function(guarded)
    for nameless in (lambda question, trajectories: [], "rewards:mine"):
        with pytest.raises(ConfigError, match=r"which has no name\. Give a function that is defined with def"):
            RewardSource.of_function(nameless)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing_rewards:score", "No module named 'missing_rewards'; give a module:function of the working folder, of"),
        ("my_own_rewards:other", "has no attribute 'other'; give a module:function of the working folder"),
        ("my_own_rewards.py:score", "'my_own_rewards' is not a package; give my_own_rewards:score"),
        ("my_own_rewards:number", "scoring.reward my_own_rewards:number is no function"),
        ("broken_rewards:score", "its module raises RuntimeError('no licence')"),
    ],
)
def test_a_reward_that_cannot_be_loaded_is_refused_with_the_remedy(folder: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        RewardSource(name).load()
    assert message in str(refused.value)


def test_a_name_of_another_form_is_refused_with_an_example() -> None:
    with pytest.raises(ConfigError, match=r"takes module:function, such as my_rewards:score, not 'rewards/mine.py:f'"):
        load_config(["--reward", "rewards/mine.py:f"])
