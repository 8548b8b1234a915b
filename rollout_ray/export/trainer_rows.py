"""Build the rows that trainers read, under the column names that they expect.

Texts are conversations, so the trainer renders them with the model's own chat template. For a model without one they are
plain texts.

    dpo    TRL's explicit-prompt preference: prompt, chosen, rejected
    sft    TRL's prompt and completion; verl and NeMo RL read messages, the two joined
    grpo   one row a question: prompt, completions, rewards; verl reads data_source, reward_model, extra_info

Advantages are absent: each trainer computes its own from the rewards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from rollout_ray.config.arms import chat_messages
from rollout_ray.core.errors import ConfigError
from rollout_ray.core.records import LOGPROBS, TOKEN_IDS, Arm, Prompt, Question
from rollout_ray.data.cells import cell_values, without_absent_keys
from rollout_ray.export.selection import Stored, best_of, group, preference_pairs

TrainerFormat = Literal["dpo", "sft", "grpo"]
Row = dict[str, Any]

MESSAGE = pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())])
SMALLEST_GROUP = 2  # rewards; a single one has no advantage


@dataclass(frozen=True)
class Choice:
    """Limits on the rows of a question.

    margin: Rewards of a coherence pair differ by more than this.
    pairs: Most dpo rows a question.
    best: Most sft rows a question.
    """

    margin: float = 0.01
    pairs: int = 4
    best: int = 1

    def __post_init__(self) -> None:
        if self.margin < 0 or self.pairs < 1 or self.best < 1:
            raise ConfigError(
                f"margin is {self.margin}, pairs is {self.pairs} and best is {self.best}. "
                "Give a margin of at least 0, and pairs and best of at least 1."
            )


def column_values(table: pa.Table, name: str) -> list[Any]:
    """Return a column's values as the data has them, without the null keys of structs."""
    return [without_absent_keys(value) for chunk in table.column(name).chunks for value in cell_values(chunk)]


def shared_system_prompt(arms: Sequence[Arm]) -> str | None:
    """Return the system prompt of all arms, or None if they differ.

    A row may join trajectories of different arms. Its prompt is then the question alone.
    """
    prompts = {arm.system_prompt for arm in arms}
    return prompts.pop() if len(prompts) == 1 else None


@dataclass(frozen=True)
class Asked:
    """A question as a row shows it.

    prompt: A conversation; the text of the prompt for a model without a chat template.
    number: Position of the question in the run, from 0.
    prompt_token_ids: The tokens of each prompt variant. None: the run does not store tokens.
    """

    question: Question
    prompt: list[Row] | str
    number: int
    data_source: str
    prompt_token_ids: Sequence[Any] | None = None

    def reply(self, trajectory: Stored) -> list[Row] | str:
        """Return an output in the form of the prompt."""
        text: str = trajectory["full_text"]
        return text if isinstance(self.prompt, str) else [{"role": "assistant", "content": text}]


def conversation(prompt: Prompt, system_prompt: str | None) -> list[Row]:
    """Return the prompt as messages, including the system prompt."""
    return [dict(message) for message in chat_messages(prompt, system_prompt)]


def dpo_rows(one: Asked, trajectories: Sequence[Stored], choice: Choice) -> list[Row]:
    """Return one row for each preference pair."""
    return [
        {
            "prompt": one.prompt,
            "chosen": one.reply(pair.chosen),
            "rejected": one.reply(pair.rejected),
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
    """Return one row for each of the best trajectories."""
    return [
        {
            "prompt": one.prompt,
            "completion": one.reply(best),
            **({} if isinstance(one.prompt, str) else {"messages": [*one.prompt, *one.reply(best)]}),
            "question_id": one.question.question_id,
            "reward": best["reward"],
            "arm": best["arm"],
        }
        for best in best_of(trajectories, choice.best)
    ]


def grpo_rows(one: Asked, trajectories: Sequence[Stored], choice: Choice) -> list[Row]:
    """Return one row if two or more trajectories have a reward, including truncated and incorrect ones."""
    members = group(trajectories)
    if len(members) < SMALLEST_GROUP:
        return []
    question = one.question
    return [
        {
            "prompt": one.prompt,
            "completions": [one.reply(t) for t in members],
            "rewards": [t["reward"] for t in members],
            "correct": [t["correct"] for t in members],
            "arms": [t["arm"] for t in members],
            "question_id": question.question_id,
            "data_source": one.data_source,
            "reward_model": {"style": "rule", "ground_truth": question.gold_answer},
            "extra_info": {"index": one.number},
            **_tokens(one, members),
        }
    ]


def _tokens(one: Asked, members: Sequence[Stored]) -> Row:
    """Return the columns of tokens, with one entry a completion, under TRL's names."""
    if one.prompt_token_ids is None:
        return {}
    return {
        "prompt_ids": [one.prompt_token_ids[t["prompt_variant"]] for t in members],
        "completion_ids": [t["token_ids"] for t in members],
        "logprobs": [t["logprobs"] for t in members],
    }


TRAINER_FORMATS: Mapping[str, Callable[[Asked, Sequence[Stored], Choice], list[Row]]] = {
    "dpo": dpo_rows,
    "sft": sft_rows,
    "grpo": grpo_rows,
}


def message_type(prompts: Iterable[pa.DataType]) -> pa.DataType:
    """Return the type of a prompt's message: role, content, and the extra fields of the runs' messages.

    Args:
        prompts: Types of the prompt columns.

    Raises:
        ConfigError: Two columns give one field different types.
    """
    fields = {field.name: field for field in MESSAGE}
    for kind in prompts:
        item = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else None
        for field in item if item is not None and pa.types.is_struct(item) else ():
            known = fields.setdefault(field.name, pa.field(field.name, field.type))
            if known.type != field.type and field.name not in MESSAGE.names:
                raise ConfigError(
                    f"The field {field.name} of messages is {known.type} in one run and {field.type} in another. "
                    "Export the runs separately."
                )
    return pa.struct(list(fields.values()))


def row_schema(form: TrainerFormat, message: pa.DataType | None, tokens: bool = False) -> pa.Schema:
    """Return a format's columns in the order of its rows.

    Args:
        form: The format.
        message: Type of a prompt's messages. None: prompts and replies are texts.
        tokens: Whether the runs store tokens.
    """
    text = pa.string()
    prompt = text if message is None else pa.list_(message)
    reply = text if message is None else pa.list_(MESSAGE)
    number = pa.float64()
    columns: dict[TrainerFormat, dict[str, pa.DataType]] = {
        "dpo": {
            "prompt": prompt,
            "chosen": reply,
            "rejected": reply,
            "pair_type": text,
            "question_id": text,
            "score_chosen": number,
            "score_rejected": number,
            "arm_chosen": text,
            "arm_rejected": text,
        },
        "sft": {
            "prompt": prompt,
            "completion": reply,
            "messages": prompt,
            "question_id": text,
            "reward": number,
            "arm": text,
        },
        "grpo": {
            "prompt": prompt,
            "completions": pa.list_(reply),
            "rewards": pa.list_(number),
            "correct": pa.list_(pa.bool_()),
            "arms": pa.list_(text),
            "question_id": text,
            "data_source": text,
            "reward_model": pa.struct([("style", text), ("ground_truth", text)]),
            "extra_info": pa.struct([("index", pa.int64())]),
        },
    }
    if message is None:
        columns["sft"].pop("messages")
    if tokens:
        ids = pa.list_(TOKEN_IDS)
        columns["grpo"] |= {"prompt_ids": ids, "completion_ids": ids, "logprobs": pa.list_(LOGPROBS)}
    return pa.schema(list(columns[form].items()))
