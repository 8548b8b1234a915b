"""Define the config's sections for arms and sampling, and the base class of all sections.

The arms of the presets are in arms.py, the other sections in schema.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from rollout_ray.config.free_values import ExtraSampling, TemplateArguments
from rollout_ray.core.user_paths import expand_home

ArmSet = Literal["regime-w", "regime-w-probes", "samples", "greedy", "custom"]
ProbeRole = Literal["A", "A'", "CF1"]

Probability = Annotated[float, Field(gt=0.0, le=1.0)]
StopString = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """Base of every section: it refuses unknown fields and numbers that are not finite, and does not change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), hide_input_in_errors=True, allow_inf_nan=False
    )


class ArmConfig(Section):
    """One arm: a system prompt and sampling parameters. What is unset comes from `sampling`."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.\-]+$", description="Unique name of the arm.")
    system_prompt: str | None = Field(None, description="System prompt. Unset: none.")
    temperature: float | None = Field(None, ge=0, description="Sampling temperature; 0 is greedy.")
    top_p: Probability | None = Field(None, description="Nucleus mass.")
    top_k: int | None = Field(None, ge=-1, description="Most likely tokens to draw from; -1: all.")
    repetition_penalty: float | None = Field(None, gt=0, description="Above 1 discourages repetition.")
    max_tokens: int | None = Field(None, ge=1, description="Longest output in tokens.")
    samples: int | None = Field(None, ge=1, le=100_000, description="Samples a question.")
    stop: list[StopString] | None = Field(None, description="Strings that end an output. Unset: those of sampling.")
    probe_role: ProbeRole | None = Field(None, description="Role in s_cf: A, A' or CF1.")
    lora_path: str | None = Field(None, description="Folder of a LoRA adapter (peft). Unset: the model's lora_path.")
    extra_sampling: ExtraSampling = Field(default_factory=dict, description="As in sampling, which it overrides.")
    chat_template_kwargs: TemplateArguments = Field(default_factory=dict, description="As in model, which it overrides.")

    @field_validator("lora_path")
    @classmethod
    def _home_is_expanded(cls, value: str | None) -> str | None:
        return None if value is None else expand_home(value)


class ArmsConfig(Section):
    """The arms under which every question is asked."""

    arm_set: ArmSet = Field("regime-w", description="Preset of arms; custom takes the arms of arm_list.")
    arm_list: list[ArmConfig] = Field(
        default_factory=list, description="Your own arms, each with a name; write them in the YAML file."
    )

    @model_validator(mode="before")
    @classmethod
    def _a_list_means_custom(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("arm_list") and "arm_set" not in data:
            return {**data, "arm_set": "custom"}
        return data

    @model_validator(mode="after")
    def _list_and_set_agree(self) -> Self:
        if self.arm_set == "custom" and not self.arm_list:
            raise ValueError("arm_set 'custom' has no arms; list them under arm_list in the config file")
        if self.arm_set != "custom" and self.arm_list:
            raise ValueError(f"arm_list and arm_set '{self.arm_set}' both give arms; leave one of them out")
        names = [arm.name for arm in self.arm_list]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"arm_list names {', '.join(twice)} more than once; give each arm a name of its own")
        return self


class SamplingConfig(Section):
    """How an output is drawn. A value here overrides a preset arm's, and fills in what a custom arm leaves out."""

    n_samples: int | None = Field(
        None, ge=1, le=100_000, description="Samples of a question and arm. Unset: the arm set's."
    )
    max_tokens: int | None = Field(None, ge=1, description="Longest output, in tokens. Unset: the arm set's.")
    temperature: float | None = Field(None, ge=0, description="Sampling temperature; 0 is greedy. Unset: the arm set's.")
    top_p: Probability | None = Field(None, description="Nucleus mass. Unset: the arm set's.")
    top_k: int = Field(-1, ge=-1, description="Most likely tokens to draw from; -1: all.")
    repetition_penalty: float = Field(1.0, gt=0, description="Above 1 discourages repetition; 1: off.")
    stop: list[StopString] = Field(
        default_factory=list,
        description="Strings or special tokens that end an output. The flag takes one string, in which \\n, \\t and \\r "
        "are read, or a JSON list.",
    )
    ignore_eos: bool = Field(False, description="Draw max_tokens in any case, for benchmarks.")
    extra_sampling: ExtraSampling = Field(
        default_factory=dict, description='Further sampling parameters of vLLM, such as {"min_p": 0.05}.'
    )
    seed: int = Field(
        42,
        ge=0,
        lt=2**63,
        description="Seed of the run. The seed of a trajectory follows from it and from the trajectory's key.",
    )
