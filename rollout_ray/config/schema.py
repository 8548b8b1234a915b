"""RunConfig: every parameter of a run, with its default, unit and range; and the digest that tells two runs apart.

Owns what a run *is*; the sections of arms and sampling are config_arms.py's. It does not read arguments or the environment
(config_sources.py), nor files but those of templates, whose text is part of the run, and does not look at the machine:
what is None here is chosen when the run starts, from the model and the hardware.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator
from pydantic.fields import FieldInfo

from rollout_ray.config.arm_schema import ArmsConfig, SamplingConfig, Section, TemplateArguments
from rollout_ray.config.budget import seconds_of
from rollout_ray.core.redaction import secret_names

DEMO_MODEL = "demo"

Layout = Literal["questions", "trajectories", "responses"]

NonNegative = Annotated[float, Field(ge=0.0)]


class DataConfig(Section):
    """Where the questions are and which columns to read."""

    dataset: str | None = Field(None, description="Parquet file, folder or glob, or JSONL file.")
    prompt_key: str = Field("prompt", description="Column with the prompt: a string, or chat messages.")
    gold_key: str | None = Field(
        None, description="Column with the gold answer; unset: gold_answer if there is one, else nothing is graded."
    )
    id_key: str | None = Field(
        None, description="Column with a unique id; unset: question_id if there is one, else ids are content hashes."
    )
    prompt_template: str | None = Field(
        None,
        description="Jinja file that makes the user's message of a row's columns; unset: the prompt column as it is.",
    )
    limit: int | None = Field(None, ge=1, description="Use only the first so many questions.")
    lengths_from: str | None = Field(
        None,
        description="Run directory or merged parquet of an earlier run over these questions: those with long outputs there "
        "are drawn first. Pays from about four times as many draws as the engines decode at once.",
    )

    @field_validator("prompt_template")
    @classmethod
    def _template_is_its_text(cls, value: str | None) -> str | None:
        """A run is what the file says now: the text takes the place of the file's name."""
        from rollout_ray.config.templates import prompt_template

        return None if value is None else prompt_template(value)


class ModelConfig(Section):
    """The policy that generates."""

    model_path: str = Field(
        DEMO_MODEL, description=f"Folder or hub id of the model; '{DEMO_MODEL}' is the small one that is shipped."
    )
    revision: str | None = Field(None, description="Revision of a model on the hub.")
    tokenizer_path: str | None = Field(None, description="Folder or hub id of the tokenizer, where it is not the model's.")
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the model.")
    lora_path: str | None = Field(
        None, description="Folder of a peft LoRA adapter to draw with, unmerged; an arm may name its own."
    )
    chat_template: str | None = Field(None, description="Jinja file of a chat template; unset: the tokenizer's own.")
    chat_template_kwargs: TemplateArguments = Field(
        default_factory=dict, description='Variables of the chat template, such as {"enable_thinking": false}.'
    )

    @field_validator("chat_template")
    @classmethod
    def _template_is_its_text(cls, value: str | None) -> str | None:
        """As with `prompt_template`."""
        from rollout_ray.config.templates import chat_template

        return None if value is None else chat_template(value)


class SimulatedConfig(Section):
    """The simulated engine (backend: simulated): known speed and faults, no model."""

    sim_tokens_per_second: float = Field(10_000.0, gt=0, description="Output tokens a second with a full batch.")
    sim_mean_tokens: int = Field(100, ge=1, description="Mean output length in tokens.")
    sim_start_seconds: float = Field(0.0, ge=0, description="Seconds that a start takes.")
    sim_error_rate: float = Field(0.0, ge=0, le=1, description="Share of requests refused with an error.")
    sim_death_rate: float = Field(0.0, ge=0, le=1, description="Chance that a request kills its engine.")
    sim_hang_rate: float = Field(0.0, ge=0, le=1, description="Chance that a request hangs its engine.")
    sim_straggler: float = Field(1.0, gt=0, description="Times that engine-0 decodes slower than the others.")
    sim_memory_seqs: int = Field(2**20, ge=1, description="Largest max_num_seqs that the engine has memory for.")


class EngineConfig(Section):
    """One vLLM replica. What is unset is chosen from the hardware when the run starts."""

    backend: Literal["vllm", "simulated"] = Field("vllm", description="What generates.")
    tensor_parallel_size: int | None = Field(
        None, ge=1, le=64, description="GPUs a replica is spread over; unset: the fewest that hold the model."
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="Weights' and activations' type; auto is the checkpoint's own."
    )
    max_model_len: int | None = Field(
        None, ge=16, description="Longest prompt + output in tokens; unset: the arm set's, at most the model's."
    )
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="Share of a GPU's memory that the engine may take.")
    kv_cache_gib: float | None = Field(
        None,
        gt=0,
        description="KV cache of a CPU replica, in GiB; unset: what max_num_seqs middling sequences need.",
    )
    max_num_seqs: int | None = Field(
        None,
        ge=1,
        description="Most sequences decoded at once; unset: up to 1024, by the GPU; 256 on the CPU.",
    )
    max_num_batched_tokens: int | None = Field(
        None, ge=16, description="Most tokens in one step; unset: up to 16384, by the GPU."
    )
    enforce_eager: bool | None = Field(
        None, description="No CUDA graphs and no compilation; unset: false on a GPU, true on the CPU."
    )
    enable_prefix_caching: bool | None = Field(
        None, description="Share the KV cache of equal prompt beginnings; unset: true where the model can."
    )
    enable_chunked_prefill: bool | None = Field(
        None, description="Split long prompts over steps; unset: true on a GPU. The CPU engine cannot."
    )
    deterministic: bool = Field(
        False,
        description="One seed gives one text whatever else is decoded beside it; a fifth slower, on GPUs only. Without it "
        "the same seed may give another text in another batch.",
    )
    load_format: str = Field("auto", description="How vLLM reads weights; 'dummy' makes random ones.")
    extra: dict[str, Any] = Field(default_factory=dict, description="More vLLM engine arguments, passed on as they are.")
    simulated: SimulatedConfig = SimulatedConfig()


REWARD_PRESETS: dict[str, dict[str, float]] = {
    "regime-w": {"gamma": 0.0, "bonus": 0.0},
    "regime-w-2": {"gamma": 0.3, "bonus": 0.2},
}


class RewardConfig(Section):
    """Regime W: reward = alpha correct + beta s_wm + gamma quality + bonus - penalty."""

    reward_preset: Literal["regime-w", "regime-w-2"] = Field("regime-w", description="Where gamma and bonus come from.")
    alpha: float = Field(1.0, description="Weight of a correct answer.")
    beta: float = Field(0.5, description="Weight of the question's coherence s_wm.")
    gamma: float = Field(0.0, description="Weight of a correct trajectory's quality.")
    bonus: float = Field(0.0, description="Added to a correct trajectory where s_end > bonus_above.")
    bonus_above: float = Field(0.9, ge=0, le=1, description="s_end that earns the bonus.")
    penalty_per_token: float = Field(0.001, ge=0, description="Taken off for each output token beyond penalty_free_tokens.")
    penalty_free_tokens: int = Field(512, ge=0, description="Output tokens that cost nothing.")
    s_wm_weights: tuple[NonNegative, NonNegative, NonNegative] = Field(
        (0.4, 0.3, 0.3), description="Weights of s_end, s_path and s_cf in s_wm; they sum to 1."
    )

    @model_validator(mode="before")
    @classmethod
    def _preset_fills_in(cls, data: Any) -> Any:
        if isinstance(data, dict):
            return {**REWARD_PRESETS.get(data.get("reward_preset", "regime-w"), {}), **data}
        return data

    @model_validator(mode="after")
    def _weights_sum_to_one(self) -> Self:
        if abs(sum(self.s_wm_weights) - 1.0) > 1e-9:
            raise ValueError(f"s_wm_weights must sum to 1, not {sum(self.s_wm_weights):g}")
        return self


class ScoringConfig(RewardConfig):
    """Grading and rewards."""

    reward: str | None = Field(
        None, pattern=r"^[\w.]+:\w+$", description="A reward of your own as module:function, in place of Regime W's."
    )
    grade_timeout_s: int = Field(5, ge=1, le=600, description="Seconds that one symbolic comparison may take.")
    grader_memory_mib: int = Field(1024, ge=256, description="Resident memory that a grading child may take, in MiB.")


class OutputConfig(Section):
    """The run directory and the merged file."""

    output_dir: str = Field("rollouts", description="Run directory.")
    layout: Layout = Field("questions", description="Shape of merged.parquet.")
    report: bool = Field(True, description="Write report.html at the end.")
    part_rows: int = Field(512, ge=1, description="Questions after which a part is written.")
    flush_seconds: float = Field(5.0, gt=0, description="Seconds after which a part is written anyway.")


class ResourcesConfig(Section):
    """Machines. Nothing here changes a row."""

    replicas: int | None = Field(
        None,
        ge=1,
        description="Engines, at most where nodes come and go; unset: as many as the GPUs hold, on the CPU at most two.",
    )
    scorers: int | None = Field(None, ge=1, description="Scoring actors; unset: one for two engines, at most 16.")
    ray_address: str | None = Field(
        None, description="Ray cluster to use ('auto', host:port); unset: RAY_ADDRESS, else a local Ray."
    )
    max_engine_deaths: int = Field(
        3, ge=0, description="Times in a row that an engine or scorer is started again without a result."
    )
    pool_idle_seconds: float = Field(
        600.0, gt=0, description="Seconds that a named pool's engines outlive the last job that used them."
    )
    engine_hang_seconds: float = Field(
        300.0,
        gt=0,
        description="Seconds without a decoding step, with requests at hand, after which an engine counts as dead.",
    )
    budget: str | None = Field(
        None, description="Stop after so long (30m, 2h) or so much money ($20), with what is complete saved."
    )
    price_per_hour: float | None = Field(
        None, gt=0, description="Dollars that all machines of the run cost an hour, for a budget in money."
    )

    @property
    def budget_seconds(self) -> float | None:
        """What the budget allows this session; None: no end."""
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
        """The config is written down in run.json, and what vLLM is given in events.jsonl."""
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
        """Dotted names and JSON values of the fields that decide which rows are written."""
        values = self.model_dump(mode="json")
        return {name: _at(values, name) for name in leaf_fields(type(self)) if not is_operational(name)}

    def digest(self) -> str:
        """16 hex digits, equal for two configs exactly when their `identity()` is."""
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
    """Whether the field of this dotted name leaves the rows as they are."""
    return any(name.startswith(entry) if entry.endswith(".") else name == entry for entry in OPERATIONAL)


def leaf_fields(model: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """Dotted name -> field of every value in the config; the last part of each name is unique, so it is also its flag."""
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
