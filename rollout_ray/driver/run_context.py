"""What a session of a run works with besides the resolved run: the questions, the run directory and the display."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

from rollout_ray.data.question_set import QuestionSet
from rollout_ray.scoring.custom_reward import RewardSources
from rollout_ray.storage.event_log import EventLog
from rollout_ray.storage.run_directory import RunDirectory
from rollout_ray.telemetry.progress import Progress


@dataclass(frozen=True)
class RunContext:
    """The surroundings of one session.

    Attributes:
        questions: The whole input.
        done: Ids of the questions that earlier sessions committed.
        kept: Numbers of the samples that earlier sessions saved of other questions, by question id.
        directory: The run directory.
        events: The log in the run directory.
        progress: Shows the run to the user.
        rewards: Where the scorers get the reward functions.
        began: When the session began to start engines, in seconds of the monotonic clock. The budget counts from here.
    """

    questions: QuestionSet
    done: Set[str]
    kept: Mapping[str, Set[int]]
    directory: RunDirectory
    events: EventLog
    progress: Progress
    rewards: RewardSources
    began: float

    @property
    def missing(self) -> int:
        """How many questions are not committed yet."""
        return len(self.questions) - len(self.done)
