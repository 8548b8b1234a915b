"""Define RunConfig: every parameter of a run with its default, unit and range, and the digest that tells two runs apart.

The sections for arms and sampling are in arm_schema.py. Arguments and the environment are read in loading.py. The only
files that are read here are templates, whose text is part of the run. A field that is None is chosen when the run starts,
from the model and the hardware.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator
from pydantic.fields import FieldInfo

from rollout_ray.config.arm_schema import ArmsConfig, SamplingConfig, Section
from rollout_ray.config.budget import seconds_of
from rollout_ray.config.free_values import FreeValues, TemplateArguments
from rollout_ray.core.redaction import secret_names

DEMO_MODEL = "demo"

Layout = Literal["questions", "trajectories", "responses"]

NonNegative = Annotated[float, Field(ge=0.0)]


class DataConfig(Section):
    """Where the questions are, and which columns to read."""

    dataset: str | None = Field(None, description="Question set: a parquet file, a folder or a glob, or a JSONL file.")
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

    @field_validator("chat_template")
    @classmethod
    def _template_is_its_text(cls, value: str | None) -> str | None:
        """Replace the file's name by its text."""
        from rollout_ray.config.templates import chat_template

        return None if value is None else chat_template(value)


class SimulatedConfig(Section):
    """The simulated engine, for tests: known speed and faults, no model."""

    sim_tokens_per_second: float = Field(10_000.0, gt=0, description="Output tokens a second of a full batch.")
    sim_mean_tokens: int = Field(100, ge=1, description="Mean output length in tokens.")
    sim_start_seconds: float = Field(0.0, ge=0, description="Duration of a start, in seconds.")
    sim_error_rate: float = Field(0.0, ge=0, le=1, description="Share of requests that the engine refuses.")
    sim_death_rate: float = Field(0.0, ge=0, le=1, description="Chance that a request kills its engine.")
    sim_hang_rate: float = Field(0.0, ge=0, le=1, description="Chance that a request hangs its engine.")
    sim_straggler: float = Field(1.0, gt=0, description="Factor by which engine-0 is slower than the others.")
    sim_memory_seqs: int = Field(2**20, ge=1, description="Largest max_num_seqs for which the engine has memory.")


class EngineConfig(Section):
    """One vLLM replica. The run chooses unset fields from the hardware when it starts."""

    backend: Literal["vllm", "simulated"] = Field("vllm", description="Engine that generates.")
    tensor_parallel_size: int | None = Field(
        None, ge=1, le=64, description="GPUs of one replica. Unset: the fewest that hold the model."
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="Type of weights and activations; auto takes the checkpoint's."
    )
    max_model_len: int | None = Field(
        None, ge=16, description="Largest sum of prompt and output, in tokens. Unset: the arm set's, at most the model's."
    )
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="Share of a GPU's memory for the engine.")
    kv_cache_gib: float | None = Field(
        None,
        gt=0,
        description="KV cache of a CPU replica, in GiB. Unset: enough for max_num_seqs sequences of middling length.",
    )
    max_num_seqs: int | None = Field(
        None,
        ge=1,
        description="Most sequences that are decoded at once. Unset: up to 1024 on a GPU, by its kind; 256 on the CPU.",
    )
    max_num_batched_tokens: int | None = Field(
        None, ge=16, description="Most tokens in one step. Unset: up to 16384, by the kind of GPU."
    )
    enforce_eager: bool | None = Field(
        None, description="Use no CUDA graphs and no compilation. Unset: false on a GPU, true on the CPU."
    )
    enable_prefix_caching: bool | None = Field(
        None, description="Share the KV cache of prompts with the same beginning. Unset: true where the model can."
    )
    enable_chunked_prefill: bool | None = Field(
        None, description="Split long prompts over several steps. Unset: true on a GPU. The CPU engine cannot."
    )
    deterministic: bool = Field(
        False,
        description="Give the same text for the same seed in every batch. GPUs only, about a fifth slower. Without it a "
        "seed may give another text in another batch.",
    )
    load_format: str = Field("auto", description="How vLLM loads the weights; dummy makes random ones.")
    extra: FreeValues = Field(default_factory=dict, description="Further engine arguments of vLLM, passed on unchanged.")
    simulated: SimulatedConfig = SimulatedConfig()


REWARD_PRESETS: dict[str, dict[str, float]] = {
    "regime-w": {"gamma": 0.0, "bonus": 0.0},
    "regime-w-2": {"gamma": 0.3, "bonus": 0.2},
}


class RewardConfig(Section):
    """Regime W: reward = alpha x correct + beta x s_wm + gamma x quality + bonus - penalty."""

    reward_preset: Literal["regime-w", "regime-w-2"] = Field(
        "regime-w", description="Source of gamma and bonus: regime-w sets both to 0, regime-w-2 to 0.3 and 0.2."
    )
    alpha: float = Field(1.0, description="Reward of a correct answer.")
    beta: float = Field(0.5, description="Weight of the coherence s_wm of the question. Wrong answers get it, too.")
    gamma: float = Field(0.0, description="Weight of the quality of a correct trajectory: how short it is.")
    bonus: float = Field(0.0, description="Reward of a correct trajectory where s_end is above bonus_above.")
    bonus_above: float = Field(0.9, ge=0, le=1, description="Value of s_end above which the bonus is paid.")
    penalty_per_token: float = Field(0.001, ge=0, description="Penalty for each output token beyond penalty_free_tokens.")
    penalty_free_tokens: int = Field(512, ge=0, description="Output tokens without a penalty.")
    s_wm_weights: tuple[NonNegative, NonNegative, NonNegative] = Field(
        (0.4, 0.3, 0.3), description="Weights of s_end, s_path and s_cf in s_wm. Their sum is 1."
    )

    @model_validator(mode="before")
    @classmethod
    def _preset_fills_in(cls, data: Any) -> Any:
        preset = data.get("reward_preset", "regime-w") if isinstance(data, dict) else None
        return {**REWARD_PRESETS.get(preset, {}), **data} if isinstance(preset, str) else data

    @model_validator(mode="after")
    def _weights_sum_to_one(self) -> Self:
        if abs(sum(self.s_wm_weights) - 1.0) > 1e-9:
            raise ValueError(f"s_wm_weights must sum to 1, not {sum(self.s_wm_weights):g}")
        return self


class ScoringConfig(RewardConfig):
    """Grading and rewards."""

    reward: str | None = Field(
        None,
        pattern=r"^[\w.]+:\w+$",
        description="Reward function of your own, as module:function. It replaces Regime W's.",
    )
    grade_timeout_s: int = Field(5, ge=1, le=600, description="Time limit of one symbolic comparison, in seconds.")
    grader_memory_mib: int = Field(1024, ge=256, description="Memory limit of a grading process, in MiB.")


class OutputConfig(Section):
    """The run directory and the merged file."""

    output_dir: str = Field("rollouts", description="Run directory.")
    layout: Layout = Field("questions", description="Shape of merged.parquet.")
    report: bool = Field(True, description="Write report.html at the end of the run.")
    part_rows: int = Field(512, ge=1, description="Questions in a part file, at most.")
    flush_seconds: float = Field(5.0, gt=0, description="Seconds until a part file is written, at most.")


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
        None, description="Time (30m, 2h) or money ($20) after which the run stops and saves what is complete."
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
        return {name: _at(values, name) for name in leaf_fields(type(self)) if not is_operational(name)}

    def digest(self) -> str:
        """Return 16 hex digits that two configs share exactly if their `identity()` is equal."""
        return hashlib.blake2b(json.dumps(self.identity(), sort_keys=True).encode(), digest_size=8).hexdigest()


# Fields (or, with a closing dot, sections) that change how a run is carried out but never which rows it writes: a
# resume may change them. The dataset's place is here because its content has a fingerprint of its own.
OPERATIONAL = (
    "data.dataset",
    "data.lengths_from",
    "engine.tensor_parallel_size",
    "engine.gpu_memory_utilization",
    "engine.kv_cache_gib",
    "engine.max_num_seqs",
    "engine.max_num_batched_tokens",
    "engine.enforce_eager",
    "engine.enable_prefix_caching",
    "engine.enable_chunked_prefill",
    "engine.simulated.",
    "output.",
    "resources.",
)


def is_operational(name: str) -> bool:
    """Return whether the field of this dotted name never changes a row."""
    return any(name.startswith(entry) if entry.endswith(".") else name == entry for entry in OPERATIONAL)


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
