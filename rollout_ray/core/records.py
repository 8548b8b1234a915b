"""Define the records that driver, engines and scorers exchange, and the Arrow schemas of the output.

Also derives the key and the seed that identify a trajectory. Imports no config, Ray or vLLM; computes no score.

    Question -> RolloutRequest -> Completion (one per sample) -> ScoredQuestion -> row of a part file
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

SCHEMA_VERSION = 2
TOKENS_SCHEMA_VERSION = 3  # of a run that stores token ids and log-probabilities

Message = Mapping[str, Any]
Prompt = str | tuple[Message, ...]
FinishReason = Literal["stop", "length", "error"]
ScoreStatus = Literal["correct", "incorrect", "no_answer", "no_gold", "bad_gold", "timeout", "error"]


@dataclass(frozen=True, slots=True)
class Question:
    """One input row.

    Attributes:
        fault: The reason why the row cannot be asked; `prompt` is then empty.
        row: The input columns that a reward or a grader asks for.
        gold_is_integer: Whether the column of the gold answer holds integers.
    """

    question_id: str
    prompt: Prompt
    gold_answer: str | None
    fault: str | None = None
    row: Mapping[str, Any] = field(default_factory=dict)
    gold_is_integer: bool = False


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm with every parameter resolved.

    Attributes:
        top_k: -1 means all tokens.
        probe_role: A, A' or CF1 for a probe, else None.
        lora_path: Folder of a peft adapter, or None for the base model.
        extra_sampling: Further vLLM sampling parameters.
        chat_template_kwargs: Variables of the chat template.
        stop: Strings that end an output.
    """

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
    stop: Sequence[str] = ()

    @property
    def prompt_variant(self) -> tuple[str | None, str]:
        """Return a key that is equal for arms whose prompts have the same tokens."""
        variables = self.chat_template_kwargs
        return self.system_prompt, json.dumps(variables, sort_keys=True) if variables else ""


@dataclass(frozen=True, slots=True)
class SampleSpec:
    """One trajectory of every question: sample number `sample` (0-based) of `arm`."""

    arm: Arm
    sample: int


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """Samples `first` to `stop - 1` of one question, for one engine. Covers the whole question unless it is split.

    Attributes:
        ordinal: Number of the question in this session.
        scorer_index: Scoring actor that receives every chunk of the question.
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
    """An engine's output for one sample.

    Attributes:
        error: The reason if `finish_reason` is "error"; the text is then empty.
        policy_version: Number of weight updates before this sample; 0 means the weights at the start.
        token_ids: The sampled tokens, the end token included (int32). None: the run does not store them.
        logprobs: The log-probability of each of these tokens (float32).
        prompt_token_ids: The tokens of the prompt.
    """

    sample_index: int
    full_text: str
    num_prompt_tokens: int
    num_tokens: int
    finish_reason: FinishReason
    engine: str
    error: str | None = None
    policy_version: int = 0
    token_ids: Sequence[int] | None = None
    logprobs: Sequence[float] | None = None
    prompt_token_ids: Sequence[int] | None = None


@dataclass(frozen=True, slots=True)
class Generated:
    """A request and its completions in sample order: the payload from engine to scorer.

    There is one per sample, except in the payload of an engine that had to stop.
    """

    request: RolloutRequest
    completions: tuple[Completion, ...]


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One scored trajectory. Its fields match the fields of TRAJECTORY_TOKENS, and then `rewards`.

    Attributes:
        error: Why there is no output, or no grade or reward.
        token_ids: The sampled tokens, the end token included (int32). None: the run does not store them.
        logprobs: The log-probability of each of these tokens (float32).
        prompt_variant: Index of the trajectory's prompt in the `prompt_token_ids` of its question.
        rewards: Named rewards; None if the run has none.
    """

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
    token_ids: Sequence[int] | None = None
    logprobs: Sequence[float] | None = None
    prompt_variant: int = 0
    rewards: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class ScoredQuestion:
    """A question with all its trajectories in arm order, and its coherence scores, each in [0, 1].

    `prompt_token_ids` has the tokens of each prompt variant; it is empty for a run that does not store them.
    """

    question_id: str
    trajectories: tuple[Trajectory, ...]
    s_end: float
    s_path: float
    s_cf: float
    s_wm: float
    prompt_token_ids: tuple[Sequence[int], ...] = ()


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

TOKEN_IDS = pa.list_(pa.int32())
LOGPROBS = pa.list_(pa.float32())
TOKEN_BYTES = 8  # of a token's id and its log-probability
TRAJECTORY_TOKENS = pa.struct(
    [
        *TRAJECTORY,
        pa.field("token_ids", TOKEN_IDS, nullable=False),
        pa.field("logprobs", LOGPROBS, nullable=False),
        pa.field("prompt_variant", pa.int32(), nullable=False),
    ]
)
PROMPT_TOKENS = "prompt_token_ids"  # column of a question; in the flat layout, of a trajectory
TOKEN_COLUMNS = (*(field.name for field in TRAJECTORY_TOKENS if field.name not in TRAJECTORY.names), PROMPT_TOKENS)
# A file has this field only if a reward function gives names. Files of other runs keep their schema.
NAMED_REWARDS = pa.field("rewards", pa.map_(pa.string(), pa.float64()))

SCORES = ("s_end", "s_path", "s_cf", "s_wm")
METADATA = b"rollout_ray"  # key of the run description (JSON) in the metadata of our parquet files

# A part file holds whole questions in any order. The merge joins the input columns by id.
PART_SCHEMA = pa.schema(
    [
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("trajectories", pa.list_(TRAJECTORY), nullable=False),
        *(pa.field(name, pa.float64(), nullable=False) for name in SCORES),
    ]
)
PART_SCHEMA_TOKENS = pa.schema(
    [
        PART_SCHEMA.field("question_id"),
        pa.field("trajectories", pa.list_(TRAJECTORY_TOKENS), nullable=False),
        *map(PART_SCHEMA.field, SCORES),
        pa.field(PROMPT_TOKENS, pa.list_(TOKEN_IDS), nullable=False),
    ]
)


def part_schema(tokens: bool, rewards: bool = False) -> pa.Schema:
    """Return the schema of the parts of a run.

    Args:
        tokens: The run stores token ids and log-probabilities.
        rewards: Its trajectories have named rewards.
    """
    schema = PART_SCHEMA_TOKENS if tokens else PART_SCHEMA
    if not rewards:
        return schema
    at = schema.get_field_index("trajectories")
    trajectory = pa.struct([*schema.field(at).type.value_type, NAMED_REWARDS])
    return schema.set(at, pa.field("trajectories", pa.list_(trajectory), nullable=False))


def has_rewards(rows: pa.Schema) -> bool:
    """Return whether the trajectories of a part, or of a nested merged file, have named rewards."""
    at = rows.get_field_index("trajectories")
    entry = rows.field(at).type if at >= 0 else pa.null()
    is_nested = pa.types.is_list(entry) and pa.types.is_struct(entry.value_type)
    return is_nested and any(field.name == NAMED_REWARDS.name for field in entry.value_type)


def schema_version(tokens: bool) -> int:
    """Return the version of the schema of a run. `tokens`: the run stores token ids and log-probabilities."""
    return TOKENS_SCHEMA_VERSION if tokens else SCHEMA_VERSION


def prompt_variants(arms: Sequence[Arm]) -> dict[tuple[str | None, str], int]:
    """Return the index of each prompt variant in the `prompt_token_ids` of a question."""
    return {variant: number for number, variant in enumerate(dict.fromkeys(arm.prompt_variant for arm in arms))}


def sample_specs(arms: Sequence[Arm]) -> tuple[SampleSpec, ...]:
    """Return all samples of a question. Arms with one prompt variant are adjacent, so that they share a prefix."""
    variants = prompt_variants(arms)
    adjacent = sorted(arms, key=lambda arm: variants[arm.prompt_variant])
    return tuple(SampleSpec(arm, sample) for arm in adjacent for sample in range(arm.samples))


def sampling_seed(run_seed: int, question_id: str, arm: str, sample: int) -> int:
    """Return the seed of one trajectory, in [0, 2**63): BLAKE2b of the run's seed and the trajectory's key.

    The seed depends on nothing else: the number of engines and restarts do not change it.
    """
    key = "\0".join((str(run_seed), question_id, arm, str(sample)))
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1


ChunkKey = tuple[int, int]  # (ordinal, first sample) of an outstanding request
Cut = tuple[ChunkKey, int]  # a chunk, and the first of its samples that an engine returns
