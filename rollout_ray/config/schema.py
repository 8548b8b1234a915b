"""Define RunConfig: every parameter of a run with its default, unit and range, and the digest that tells two runs apart.

arm_schema.py, engine_schema.py and scoring_schema.py have the larger sections. loading.py reads the sources of a config.
The only files that are read here are templates, whose text is part of the run.
A field that is None is chosen when the run starts, from the model and the hardware.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator
from pydantic.fields import FieldInfo

from rollout_ray.config.arm_schema import ArmsConfig, SamplingConfig, Section
from rollout_ray.config.budget import seconds_of
from rollout_ray.config.engine_schema import EngineConfig
from rollout_ray.config.free_values import TemplateArguments
from rollout_ray.config.identity import ADDED, ADDED_TO_ARMS, drop_defaults, is_operational
from rollout_ray.config.scoring_schema import ScoringConfig
from rollout_ray.core.redaction import secret_names
from rollout_ray.core.user_paths import expand_home

DEMO_MODEL = "demo"

Layout = Literal["questions", "trajectories", "responses"]
LogprobsKind = Literal["sampled", "raw"]
PromptStyle = Literal["chat", "problem", "raw", "rendered"]


class DataConfig(Section):
    """Where the questions are, and which columns to read."""

    dataset: str | None = Field(
        None, description="Question set: a file, folder or glob of parquet, JSON lines, CSV or Arrow."
    )
    prompt_key: str = Field("prompt", description="Column of the prompt: a string, or chat messages.")
    gold_key: str | None = Field(
        None, description="Column of the gold answer. Unset: gold_answer if the data have it, else nothing is graded."
    )
    id_key: str | None = Field(
        None, description="Column of a unique id. Unset: question_id if the data have it, else a hash of the content."
    )
    prompt_template: str | None = Field(
        None,
        description="Jinja file that makes the user message from a row's columns. Unset: the prompt column unchanged.",
    )
    limit: int | None = Field(None, ge=1, description="Number of questions to use, from the first. Unset: all.")
    lengths_from: str | None = Field(
        None,
        description="Run directory or merged parquet of an earlier run over these questions. Questions with long outputs "
        "there are drawn first. It pays from four times as many samples as the engines decode at once.",
    )

    @field_validator("dataset", "lengths_from")
    @classmethod
    def _home_is_expanded(cls, value: str | None) -> str | None:
        return None if value is None else expand_home(value)

    @field_validator("prompt_template")
    @classmethod
    def _template_is_its_text(cls, value: str | None) -> str | None:
        """Replace the file's name by its text: a run is what the file says now."""
        from rollout_ray.config.templates import prompt_template

        return None if value is None else prompt_template(value)


class ModelConfig(Section):
    """The model that generates."""

    model_path: str = Field(
        DEMO_MODEL, description=f"Folder or hub id of the model; '{DEMO_MODEL}' is the small model of the package."
    )
    revision: str | None = Field(None, description="Revision of the model on the hub. Unset: its main branch.")
    tokenizer_path: str | None = Field(None, description="Folder or hub id of the tokenizer. Unset: the model's.")
    trust_remote_code: bool = Field(False, description="Allow Python code that comes with the model to run.")
    lora_path: str | None = Field(
        None, description="Folder of a LoRA adapter (peft), served unmerged. An arm may name another."
    )
    chat_template: str | None = Field(None, description="Jinja file of a chat template. Unset: the tokenizer's.")
    chat_template_kwargs: TemplateArguments = Field(
        default_factory=dict, description='Variables of the chat template, such as {"enable_thinking": false}.'
    )

    prompt_style: PromptStyle | None = Field(
        None,
        description="Wording of prompts: chat (the chat template), problem (Problem: ... Solution:), raw (the text as it "
        "stands), or rendered (raw, and special tokens in it are tokens). Unset: chat if there is a template, else raw if "
        "there is a prompt_template, else problem.",
    )

    @field_validator("model_path", "tokenizer_path", "lora_path")
    @classmethod
    def _home_is_expanded(cls, value: str | None) -> str | None:
        return None if value is None else expand_home(value)

    @field_validator("chat_template")
    @classmethod
    def _template_is_its_text(cls, value: str | None) -> str | None:
        """Replace the file's name by its text."""
        from rollout_ray.config.templates import chat_template

        return None if value is None else chat_template(value)


class OutputConfig(Section):
    """The run directory and the merged file."""

    output_dir: str = Field("rollouts", description="Run directory.")
    layout: Layout = Field("questions", description="Shape of merged.parquet.")
    report: bool = Field(True, description="Write report.html at the end of the run.")
    tokens: bool = Field(
        False, description="Store the sampled token ids, their log-probabilities, and the token ids of the prompts."
    )
    logprobs: LogprobsKind = Field(
        "sampled",
        description="Distribution of the stored log-probabilities: sampled (the one that tokens are drawn from, after "
        "temperature, top_p, top_k and penalties) or raw (the model's own). For --tokens.",
    )
    part_rows: int = Field(512, ge=1, description="Questions in a part file, at most.")
    flush_seconds: float = Field(5.0, gt=0, description="Seconds until a part file is written, at most.")

    @field_validator("output_dir")
    @classmethod
    def _home_is_expanded(cls, value: str) -> str:
        return expand_home(value)

    @model_validator(mode="after")
    def _logprobs_are_stored(self) -> Self:
        if self.logprobs != "sampled" and not self.tokens:
            raise ValueError(f"logprobs is {self.logprobs}, but none are stored; give --tokens true as well")
        return self


class ResourcesConfig(Section):
    """Machines and limits. No field here changes a row."""

    replicas: int | None = Field(
        None,
        ge=1,
        description="Engines; the most of them on a cluster that grows. Unset: what the GPUs hold, at most 2 on the CPU.",
    )
    scorers: int | None = Field(None, ge=1, description="Number of scorers. Unset: one for two engines, at most 16.")
    ray_address: str | None = Field(
        None, description="Address of a Ray cluster: auto, or host:port. Unset: RAY_ADDRESS, else a local Ray."
    )
    max_engine_deaths: int = Field(
        3, ge=0, description="How often in a row an engine or scorer is started again without a result."
    )
    pool_idle_seconds: float = Field(
        600.0, gt=0, description="Seconds that the engines of a named pool stay up without a job."
    )
    engine_hang_seconds: float = Field(
        300.0,
        gt=0,
        description="Seconds without a decoding step, with requests waiting, until an engine counts as dead.",
    )
    budget: str | None = Field(
        None, description="Time (30m, 2h) or money ($20) after which the run stops and saves what has finished."
    )
    price_per_hour: float | None = Field(
        None, gt=0, description="Price of all machines of the run, in dollars an hour; needed for a budget in money."
    )

    @property
    def budget_seconds(self) -> float | None:
        """Seconds that this session may last. None: no limit."""
        return None if self.budget is None else seconds_of(self.budget, self.price_per_hour)

    @model_validator(mode="after")
    def _budget_can_be_read(self) -> Self:
        if self.budget is not None:
            seconds_of(self.budget, self.price_per_hour)
        return self


class RunConfig(Section):
    """One run, whole. Raises pydantic.ValidationError on an unknown field or a value out of range."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    engine: EngineConfig = EngineConfig()
    arms: ArmsConfig = ArmsConfig()
    sampling: SamplingConfig = SamplingConfig()
    scoring: ScoringConfig = ScoringConfig()
    output: OutputConfig = OutputConfig()
    resources: ResourcesConfig = ResourcesConfig()

    @model_validator(mode="after")
    def _logprobs_are_of_one_kind(self) -> Self:
        if self.output.tokens and (given := {"logprobs_mode", "worker_cls"} & self.engine.extra.keys()):
            name = min(given)
            raise ValueError(f"engine.extra holds {name}, which a run with --tokens sets itself; leave it out")
        return self

    @model_validator(mode="after")
    def _holds_no_secret(self) -> Self:
        """Refuse secrets, because run.json and events.jsonl store the config."""
        values: dict[str, Any] = {
            "data": self.data.model_dump(include={"dataset", "lengths_from"}),
            "output": {"output_dir": self.output.output_dir},
        }
        values |= {"model": {"model_path": self.model.model_path, "lora_path": self.model.lora_path}}
        values |= {"arms": {arm.name: {"lora_path": arm.lora_path} for arm in self.arms.arm_list}}
        values |= {"engine": {"extra": self.engine.extra}}
        if name := next(secret_names(values), None):
            raise ValueError(
                f"{name} holds a secret, and the config is written to run.json; give it in the environment, such as "
                "AWS_SECRET_ACCESS_KEY or HF_TOKEN"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """Return the fields that decide which rows are written, as dotted names and JSON values."""
        values = self.model_dump(mode="json")
        for arm in values["arms"]["arm_list"]:
            drop_defaults(arm, ADDED_TO_ARMS)
        fields = {name: _at(values, name) for name in leaf_fields(type(self)) if not is_operational(name)}
        drop_defaults(fields, ADDED)
        return fields

    def operational(self) -> dict[str, Any]:
        """Return the fields that no row depends on, as dotted names and JSON values. Each session may change them."""
        values = self.model_dump(mode="json")
        return {name: _at(values, name) for name in leaf_fields(type(self)) if is_operational(name)}

    def digest(self) -> str:
        """Return 16 hex digits that two configs share exactly if their `identity()` is equal."""
        return hashlib.blake2b(json.dumps(self.identity(), sort_keys=True).encode(), digest_size=8).hexdigest()


def leaf_fields(model: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """Return every field by its dotted name. The last part of each name is unique, so it is also the flag."""
    found: dict[str, FieldInfo] = {}
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            found |= leaf_fields(info.annotation, f"{prefix}{name}.")
        else:
            found[prefix + name] = info
    return found


def _at(values: dict[str, Any], dotted: str) -> Any:
    for part in dotted.split("."):
        values = values[part]
    return values
