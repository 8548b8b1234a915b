"""Compute Regime W: the coherence of a question over its trajectories, and the reward of each trajectory.

This is arithmetic on texts, answers and grades. extraction.py finds answers, and grader.py grades them.

    s_wm   = w0 s_end + w1 s_path + w2 s_cf                                     (defaults 0.4, 0.3, 0.3)
    reward = alpha correct + beta s_wm + gamma quality + bonus - penalty
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from rollout_ray.config.scoring_schema import RewardConfig
from rollout_ray.scoring.grader import Grade
from rollout_ray.scoring.normal_form import votes

__all__ = ["UNKNOWN", "QuestionScore", "RewardConfig", "RewardTerms", "Scorable", "reward_terms", "score_question"]

UNKNOWN = frozenset(("bad_gold", "timeout", "error"))  # it is unknown whether the answer is right


@dataclass(frozen=True, slots=True)
class Scorable:
    """The properties of a trajectory, besides its grade, on which its reward depends.

    Attributes:
        reasoning: The text before the answer.
        num_tokens: Output tokens.
        probe_role: Role of the arm: A, A', CF1 or None.
    """

    reasoning: str
    num_tokens: int
    probe_role: str | None = None


@dataclass(frozen=True, slots=True)
class RewardTerms:
    """The weighted terms of one reward. `total` is the reward."""

    correct: float
    coherence: float
    quality: float
    bonus: float
    penalty: float

    @property
    def total(self) -> float:
        return self.correct + self.coherence + self.quality + self.bonus - self.penalty


@dataclass(frozen=True, slots=True)
class QuestionScore:
    """The coherence of one question, each value in [0, 1], and the reward of each trajectory with its terms.

    A reward and its terms are None if the grade is bad_gold, timeout or error, because the truth is unknown.
    """

    s_end: float
    s_path: float
    s_cf: float
    s_wm: float
    rewards: tuple[float | None, ...]
    terms: tuple[RewardTerms | None, ...]


def score_question(trajectories: Sequence[Scorable], grades: Sequence[Grade], config: RewardConfig) -> QuestionScore:
    """Score the trajectories of one question.

    Answers agree if they are equal in the form in which votes are counted: `(1,2)` and `(1, 2)` agree.

    Args:
        trajectories: The trajectories.
        grades: Their grades, in the same order.
        config: Weights of the reward.

    Raises:
        ValueError: The lengths differ.
    """
    if len(trajectories) != len(grades):
        raise ValueError(f"{len(trajectories)} trajectories with {len(grades)} grades")
    answers = votes([grade.answer for grade in grades])
    words = [_words(t) for t in trajectories]
    vocabularies = [frozenset(w) for w in words]
    end = end_coherence(answers)
    path = path_coherence([len(w) for w in words], vocabularies)
    counterfactual = counterfactual_coherence(answers, [t.probe_role for t in trajectories])
    w_end, w_path, w_cf = config.s_wm_weights
    coherence = min(1.0, w_end * end + w_path * path + w_cf * counterfactual)
    terms = reward_terms(trajectories, [grade.status for grade in grades], end, coherence, config)
    rewards = tuple(t.total if t else None for t in terms)
    return QuestionScore(end, path, counterfactual, coherence, rewards, terms)


def reward_terms(
    trajectories: Sequence[Scorable], statuses: Sequence[str], end: float, coherence: float, config: RewardConfig
) -> tuple[RewardTerms | None, ...]:
    """Return the terms of each reward, in order. None: the status leaves it unknown whether the answer is right.

    The preset `exact` pays only for right answers. With it, a question without a gold answer gives None, too.

    Args:
        trajectories: The trajectories.
        statuses: Their score statuses, in the same order.
        end: s_end of the question, in [0, 1].
        coherence: s_wm of the question, in [0, 1].
        config: Weights of the reward.
    """
    unknown = UNKNOWN | {"no_gold"} if config.reward_preset == "exact" else UNKNOWN
    right = [i for i, status in enumerate(statuses) if status == "correct"]
    quality = _qualities(trajectories, right) if config.gamma else {}
    return tuple(
        None
        if status in unknown
        else RewardTerms(
            correct=config.alpha * (status == "correct"),
            coherence=config.beta * coherence,
            quality=config.gamma * quality.get(i, 0.0),
            bonus=config.bonus * (status == "correct" and end > config.bonus_above),
            penalty=config.penalty_per_token * max(0, trajectory.num_tokens - config.penalty_free_tokens),
        )
        for i, (trajectory, status) in enumerate(zip(trajectories, statuses, strict=True))
    )


def end_coherence(answers: Sequence[str | None]) -> float:
    """Return s_end: the share of unordered pairs with two equal answers. One trajectory gives 1, none gives 0."""
    if len(answers) < 2:
        return float(len(answers))
    counts = Counter(answer for answer in answers if answer is not None)
    agreeing = sum(n * (n - 1) // 2 for n in counts.values())
    return agreeing / (len(answers) * (len(answers) - 1) // 2)


def path_coherence(lengths: Sequence[int], vocabularies: Sequence[frozenset[str]]) -> float:
    """Return s_path = 0.4 L + 0.6 J, in [0, 1].

    L is 1 / (1 + variance / mean) of the word counts, with the population variance. J is the mean Jaccard overlap over all
    pairs. One trajectory gives L alone. Trajectories without words give 0.
    """
    total = sum(lengths)
    if total == 0:
        return 0.0
    mean = total / len(lengths)
    variance = sum((n - mean) ** 2 for n in lengths) / len(lengths)
    evenness = 1.0 / (1.0 + variance / mean)
    if len(lengths) == 1:
        return evenness
    overlaps = [jaccard(a, b) for a, b in combinations(vocabularies, 2)]
    return 0.4 * evenness + 0.6 * sum(overlaps) / len(overlaps)


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Return |a and b| / |a or b|, in [0, 1]. Two empty sets give 0."""
    shared = len(a & b)
    union = len(a) + len(b) - shared
    return shared / union if union else 0.0


def counterfactual_coherence(answers: Sequence[str | None], roles: Sequence[str | None]) -> float:
    """Return s_cf, in [0, 1]: with probes, the share of (A, CF1) and (A', CF1) pairs that agree.

    Without probes it is the share of the commonest answer. One distinct answer gives 1, all distinct give 0, and no answer
    at all gives 0.5.
    """
    pairs = [
        (standard, sceptic)
        for standard, role in zip(answers, roles, strict=True)
        if role in ("A", "A'")
        for sceptic, other in zip(answers, roles, strict=True)
        if other == "CF1"
    ]
    if pairs:
        return sum(a is not None and a == b for a, b in pairs) / len(pairs)
    counts = Counter(answer for answer in answers if answer is not None)
    if not counts:
        return 0.5
    if len(counts) == 1:
        return 1.0
    if len(counts) == len(answers):
        return 0.0
    return max(counts.values()) / len(answers)


def _words(trajectory: Scorable) -> list[str]:
    return trajectory.reasoning.lower().split()


def _qualities(trajectories: Sequence[Scorable], right: Sequence[int]) -> dict[int, float]:
    """Return the quality of each correct trajectory, in [0, 1], by index.

    It is the conciseness among the correct ones. If a probe A or A' is correct, it is 0.4 times the conciseness plus 0.6
    times the best Jaccard overlap with such a probe.
    """
    if not right:
        return {}
    lengths = [trajectories[i].num_tokens for i in right]
    spread = max(lengths) - min(lengths)
    probes = [i for i in right if trajectories[i].probe_role in ("A", "A'")]
    vocabularies = {i: frozenset(_words(trajectories[i])) for i in right} if probes else {}
    qualities = {}
    for i in right:
        concise = 1.0 - (trajectories[i].num_tokens - min(lengths)) / spread if spread else 0.5
        if probes:
            concise = 0.4 * concise + 0.6 * max(jaccard(vocabularies[i], vocabularies[p]) for p in probes)
        qualities[i] = concise
    return qualities
