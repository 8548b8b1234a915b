"""Regime W: a question's coherence over its trajectories, and each trajectory's reward.

Pure arithmetic on texts, answers and grades. It neither extracts answers (answers.py) nor judges them (grading.py).

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

UNKNOWN = frozenset(("bad_gold", "timeout", "error"))  # statuses that leave it open whether the answer was right


@dataclass(frozen=True, slots=True)
class Scorable:
    """What a reward depends on beside the grade: the reasoning's text, its length in the tokenizer's tokens, and the
    arm's probe role (A, A', CF1 or None)."""

    reasoning: str
    num_tokens: int
    probe_role: str | None = None


@dataclass(frozen=True, slots=True)
class RewardTerms:
    """The addends of one reward, each already weighted; their sum is the reward."""

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
    """Coherence of one question, each in [0, 1], and per trajectory its reward and the reward's terms.

    A reward is None, and so are its terms, where the grade is bad_gold, timeout or error: the truth is unknown then.
    """

    s_end: float
    s_path: float
    s_cf: float
    s_wm: float
    rewards: tuple[float | None, ...]
    terms: tuple[RewardTerms | None, ...]


def score_question(trajectories: Sequence[Scorable], grades: Sequence[Grade], config: RewardConfig) -> QuestionScore:
    """Scores the K trajectories of one question; `grades` has length K, in the same order. Answers agree where they are
    the same in the form in which votes are counted: `(1,2)` and `(1, 2)` do.

    Raises ValueError where the lengths differ.
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
    """The terms of each trajectory's reward, in order, from their score statuses and the question's s_end and s_wm.

    None where the status leaves the truth open. The preset `exact` pays for nothing else, so there a question without a
    gold answer gives None, too. `statuses` has the length of `trajectories`.
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
    """s_end: the share of unordered pairs whose answers are both present and equal; one trajectory 1, none 0."""
    if len(answers) < 2:
        return float(len(answers))
    counts = Counter(answer for answer in answers if answer is not None)
    agreeing = sum(n * (n - 1) // 2 for n in counts.values())
    return agreeing / (len(answers) * (len(answers) - 1) // 2)


def path_coherence(lengths: Sequence[int], vocabularies: Sequence[frozenset[str]]) -> float:
    """s_path = 0.4 L + 0.6 J: L = 1 / (1 + var / mean) of the word counts, J the mean Jaccard overlap over pairs.

    One trajectory gives L alone, no words at all 0. The variance is the population's.
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
    """|a and b| / |a or b|, in [0, 1]; two empty sets share nothing."""
    shared = len(a & b)
    union = len(a) + len(b) - shared
    return shared / union if union else 0.0


def counterfactual_coherence(answers: Sequence[str | None], roles: Sequence[str | None]) -> float:
    """s_cf: with probes the share of (A, CF1) and (A', CF1) pairs that agree, else the commonest answer's share.

    Without probes: one distinct answer 1, all K distinct 0, nobody answered 0.5.
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
    """Quality in [0, 1] of each correct trajectory, by index: conciseness among the correct ones, and where a probe A
    or A' is correct 0.4 of it plus 0.6 of the best Jaccard overlap with such a probe."""
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
