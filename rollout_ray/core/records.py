"""The data contract: what travels between driver, engines and scorers, and the Arrow schemas of what is written.

Owns shapes and names, and the two derivations that identify a trajectory (its key and its seed). It knows no config,
no Ray and no vLLM, and computes no score.

    Question -> RolloutRequest -> Completion (one a draw) -> ScoredQuestion -> a row of a part file
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

SCHEMA_VERSION = 2

Message = Mapping[str, Any]
Prompt = str | tuple[Message, ...]
FinishReason = Literal["stop", "length", "error"]
ScoreStatus = Literal["correct", "incorrect", "no_answer", "no_gold", "bad_gold", "timeout", "error"]


@dataclass(frozen=True, slots=True)
class Question:
    """One row of the input. `fault` says in words why it cannot be asked; then `prompt` is empty."""

    question_id: str
    prompt: Prompt
    gold_answer: str | None
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm with every parameter settled. `top_k` -1 means all; `probe_role` is A, A' or CF1 for a probe; `lora_path` is
    the folder of a peft adapter, None for the bare model; `extra_sampling` are more of vLLM's sampling parameters, and
    `chat_template_kwargs` variables of the chat template."""

    name: str
    system_prompt: str | None
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    max_tokens: int
    samples: int
    probe_role: str | None = None
    lora_path: str | None = None
    extra_sampling: Mapping[str, Any] = field(default_factory=dict)
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt_variant(self) -> tuple[str | None, str]:
        """Arms of which this is equal ask a question in the same tokens."""
        variables = self.chat_template_kwargs
        return self.system_prompt, json.dumps(variables, sort_keys=True) if variables else ""


@dataclass(frozen=True, slots=True)
class SampleSpec:
    """One trajectory to be drawn of every question: sample number `sample` (0-based) of `arm`."""

    arm: Arm
    sample: int


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """The draws `first` .. `stop - 1` of one question, for one engine; the whole question unless it was split.

    `ordinal` is the question's number in this session; `lane` the scoring actor that gets all of its pieces.
    """

    ordinal: int
    scorer_index: int
    question: Question
    first: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.first


@dataclass(frozen=True, slots=True)
class Completion:
    """What an engine made of one draw. `error` is the reason where `finish_reason` is error; the text is then empty.
    `policy_version` counts the updates of the weights that drew it; 0 are those that the engine was started for."""

    sample_index: int
    full_text: str
    num_prompt_tokens: int
    num_tokens: int
    finish_reason: FinishReason
    engine: str
    error: str | None = None
    policy_version: int = 0


@dataclass(frozen=True, slots=True)
class Generated:
    """A request and its completions, one a draw, in the order of the draws: the payload from engine to scorer."""

    request: RolloutRequest
    completions: tuple[Completion, ...]


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One scored trajectory, field for field a `trajectories` entry of the output (see TRAJECTORY)."""

    arm: str
    sample: int
    seed: int
    temperature: float
    top_p: float
    full_text: str
    reasoning: str
    answer: str | None
    correct: bool | None
    score_status: ScoreStatus
    reward: float | None
    num_prompt_tokens: int
    num_tokens: int
    finish_reason: FinishReason
    error: str | None
    engine: str
    policy_version: int


@dataclass(frozen=True, slots=True)
class ScoredQuestion:
    """A question with all of its trajectories, in the order of the arms, and its coherence, each in [0, 1]."""

    question_id: str
    trajectories: tuple[Trajectory, ...]
    s_end: float
    s_path: float
    s_cf: float
    s_wm: float


TRAJECTORY = pa.struct(
    [
        pa.field("arm", pa.string(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("temperature", pa.float64(), nullable=False),
        pa.field("top_p", pa.float64(), nullable=False),
        pa.field("full_text", pa.string(), nullable=False),
        pa.field("reasoning", pa.string(), nullable=False),
        pa.field("answer", pa.string()),
        pa.field("correct", pa.bool_()),
        pa.field("score_status", pa.string(), nullable=False),
        pa.field("reward", pa.float64()),
        pa.field("num_prompt_tokens", pa.int32(), nullable=False),
        pa.field("num_tokens", pa.int32(), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("engine", pa.string(), nullable=False),
        pa.field("policy_version", pa.int32(), nullable=False),
    ]
)

SCORES = ("s_end", "s_path", "s_cf", "s_wm")
METADATA = b"rollout_ray"  # key of what our parquet files say about their run, as JSON

# A part file: whole questions, in no particular order, without the input columns (the merge joins those by id).
PART_SCHEMA = pa.schema(
    [
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("trajectories", pa.list_(TRAJECTORY), nullable=False),
        *(pa.field(name, pa.float64(), nullable=False) for name in SCORES),
    ]
)


def sample_specs(arms: Sequence[Arm]) -> tuple[SampleSpec, ...]:
    """All draws of a question. Arms of one wording stand together, so that an engine meets their shared prefix in a
    row."""
    variants = list(dict.fromkeys(arm.prompt_variant for arm in arms))
    adjacent = sorted(arms, key=lambda arm: variants.index(arm.prompt_variant))
    return tuple(SampleSpec(arm, sample) for arm in adjacent for sample in range(arm.samples))


def sampling_seed(run_seed: int, question_id: str, arm: str, sample: int) -> int:
    """The seed of one trajectory, in [0, 2**63): BLAKE2b of the run's seed and the trajectory's key.

    It depends on nothing else, so neither the number of engines nor a restart changes it, and two keys share a seed
    only by a hash collision.
    """
    key = "\0".join((str(run_seed), question_id, arm, str(sample)))
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1


ChunkKey = tuple[int, int]  # (ordinal, first draw) of an outstanding request
Cut = tuple[ChunkKey, int]  # a piece, and the first of its draws that an engine gives back
