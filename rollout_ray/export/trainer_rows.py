"""The rows that trainers read, under the column names that they know.

Owns the columns and their types; which trajectories stand in them is preferences.py's. Texts are conversations, so that
a trainer renders them with the model's own chat template:

    dpo    TRL's explicit-prompt preference: prompt, chosen, rejected
    sft    TRL's prompt and completion; messages, the two joined, is what verl and NeMo RL read
    grpo   one row a question: prompt, completions, rewards; data_source, reward_model and extra_info are verl's

No advantages: trainers compute them from the rewards, each in its own way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from rollout_ray.config.arms import chat_messages
from rollout_ray.core.errors import ConfigError
from rollout_ray.core.records import Arm, Question
from rollout_ray.export.selection import Stored, best_of, group, preference_pairs

TrainerFormat = Literal["dpo", "sft", "grpo"]
Row = dict[str, Any]

MESSAGE = pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())])
SMALLEST_GROUP = 2  # rewards; one alone has no advantage over the others


@dataclass(frozen=True)
class Choice:
    """How many rows a question gives: dpo pairs, and how far apart in reward a coherence pair must be; sft examples."""

    margin: float = 0.01
    pairs: int = 4
    best: int = 1

    def __post_init__(self) -> None:
        if self.margin < 0 or self.pairs < 1 or self.best < 1:
            raise ConfigError("margin must be 0 or more, pairs and best 1 or more; correct the one that is not")


def shared_system_prompt(arms: Sequence[Arm]) -> str | None:
    """The system prompt of all arms; None where they differ. Two trajectories of one row may be of different arms, which
    are then ways of drawing, and the question alone is what both answer."""
    prompts = {arm.system_prompt for arm in arms}
    return prompts.pop() if len(prompts) == 1 else None


@dataclass(frozen=True)
class Asked:
    """A question as a row gives it: `prompt` a conversation, `number` its place in its run, from 0."""

    question: Question
    prompt: list[Row]
    number: int
    data_source: str


def asked(question: Question, system_prompt: str | None, number: int, data_source: str) -> Asked:
    messages = [dict(message) for message in chat_messages(question.prompt, system_prompt)]
    return Asked(question, messages, number, data_source)


def dpo_rows(one: Asked, trajectories: Sequence[Stored], choice: Choice) -> list[Row]:
    """One row a preference pair."""
    return [
        {
            "prompt": one.prompt,
            "chosen": _said(pair.chosen),
            "rejected": _said(pair.rejected),
            "pair_type": pair.pair_type,
            "question_id": one.question.question_id,
            "score_chosen": pair.chosen["reward"],
            "score_rejected": pair.rejected["reward"],
            "arm_chosen": pair.chosen["arm"],
            "arm_rejected": pair.rejected["arm"],
        }
        for pair in preference_pairs(trajectories, choice.margin, choice.pairs)
    ]


def sft_rows(one: Asked, trajectories: Sequence[Stored], choice: Choice) -> list[Row]:
    """One row for each of the best trajectories."""
    return [
        {
            "prompt": one.prompt,
            "completion": _said(best),
            "messages": [*one.prompt, *_said(best)],
            "question_id": one.question.question_id,
            "reward": best["reward"],
            "arm": best["arm"],
        }
        for best in best_of(trajectories, choice.best)
    ]


def grpo_rows(one: Asked, trajectories: Sequence[Stored], choice: Choice) -> list[Row]:
    """One row where two or more trajectories have a reward, cut-off and incorrect ones included."""
    members = group(trajectories)
    if len(members) < SMALLEST_GROUP:
        return []
    question = one.question
    return [
        {
            "prompt": one.prompt,
            "completions": [_said(t) for t in members],
            "rewards": [t["reward"] for t in members],
            "correct": [t["correct"] for t in members],
            "arms": [t["arm"] for t in members],
            "question_id": question.question_id,
            "data_source": one.data_source,
            "reward_model": {"style": "rule", "ground_truth": question.gold_answer},
            "extra_info": {"index": one.number},
        }
    ]


def _said(trajectory: Stored) -> list[Row]:
    return [{"role": "assistant", "content": trajectory["full_text"]}]


TRAINER_FORMATS: Mapping[str, Callable[[Asked, Sequence[Stored], Choice], list[Row]]] = {
    "dpo": dpo_rows,
    "sft": sft_rows,
    "grpo": grpo_rows,
}


def message_type(prompts: Iterable[pa.DataType]) -> pa.DataType:
    """The type of a message of prompts that come in columns of these types: role, content, and the further fields that
    the messages of a conversation have. Raises ConfigError where two columns give a field different types."""
    fields = {field.name: field for field in MESSAGE}
    for kind in prompts:
        item = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else None
        for field in item if item is not None and pa.types.is_struct(item) else ():
            known = fields.setdefault(field.name, pa.field(field.name, field.type))
            if known.type != field.type and field.name not in MESSAGE.names:
                raise ConfigError(f"messages have {field.name} as {known.type} and as {field.type}; export the runs apart")
    return pa.struct(list(fields.values()))


def row_schema(form: TrainerFormat, message: pa.DataType) -> pa.Schema:
    """The columns of a format, in the order of its rows; `message` is the type of a prompt's messages."""
    prompt, said, text, number = pa.list_(message), pa.list_(MESSAGE), pa.string(), pa.float64()
    columns: dict[TrainerFormat, dict[str, pa.DataType]] = {
        "dpo": {
            "prompt": prompt, "chosen": said, "rejected": said, "pair_type": text, "question_id": text,
            "score_chosen": number, "score_rejected": number, "arm_chosen": text, "arm_rejected": text,
        },
        "sft": {
            "prompt": prompt, "completion": said, "messages": prompt, "question_id": text, "reward": number, "arm": text,
        },
        "grpo": {
            "prompt": prompt, "completions": pa.list_(said), "rewards": pa.list_(number), "correct": pa.list_(pa.bool_()),
            "arms": pa.list_(text), "question_id": text, "data_source": text,
            "reward_model": pa.struct([("style", text), ("ground_truth", text)]),
            "extra_info": pa.struct([("index", pa.int64())]),
        },
    }  # fmt: skip
    return pa.schema(list(columns[form].items()))
