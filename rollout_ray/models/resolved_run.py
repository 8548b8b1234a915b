"""Resolve a run once: its config, arms, model, adapters and weights become one frozen value.

Invariant: code that receives a ResolvedRun neither resolves arms or paths again nor changes the config.
This module reads configs and fingerprints of checkpoints. It loads no weights and starts nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rollout_ray.config.arms import default_max_model_len, resolve_arms
from rollout_ray.config.schema import RunConfig
from rollout_ray.core.errors import ConfigError
from rollout_ray.core.records import Arm
from rollout_ray.models.adapters import adapters_of, check_adapter, check_wording, fingerprints
from rollout_ray.models.checkpoints import Policy, model_fingerprint
from rollout_ray.models.paths import check_model_path, cluster_address, model_folder
from rollout_ray.models.prompt_wording import Examples, check_style, wording_identity
from rollout_ray.models.special_tokens import stored_special_tokens


@dataclass(frozen=True)
class ResolvedRun:
    """One run, with every name and default of its config resolved. It can be pickled.

    Attributes:
        config: The config as the user gave it.
        arms: The arms, with every parameter set.
        model_path: Folder or hub id of the model. Its config and tokenizer come from here.
        policy: The weights that generate. A pool may hold weights from another folder than `model_path`.
        adapters: Folder of each LoRA adapter -> fingerprint of its content.
        max_model_len: Longest prompt and output together, in tokens; None is the model's own limit.
        folder: Working folder of the driver, from which relative paths count.
        examples: The first prompts, for the engines to check. Empty until the questions are read.
    """

    config: RunConfig
    arms: tuple[Arm, ...]
    model_path: str
    policy: Policy
    adapters: Mapping[str, str]
    max_model_len: int | None
    folder: str = field(default_factory=os.getcwd)
    examples: Examples = field(default_factory=Examples)

    @property
    def identity(self) -> dict[str, Any]:
        """What a resumed run must share with the earlier one, but for the questions. Keys are dotted names.

        A wording or stop token of which version 0.1.0 made something else has an entry, so that its runs are refused.
        """
        fields = {name: value for name, value in self.config.identity().items() if name != "model.prompt_style"}
        if wording := wording_identity(self.config, self.tokenizer_path):
            fields["model.prompt_style"] = wording
        stops = {stop for arm in self.arms for stop in arm.stop}
        if stops and (tokens := sorted(stops & stored_special_tokens(self.tokenizer_path))):
            fields["sampling.stop_tokens"] = tokens
        adapters = {"adapters.fingerprint": dict(self.adapters)} if self.adapters else {}
        return {**fields, "model.fingerprint": self.policy.fingerprint, **adapters}

    @property
    def tokenizer_path(self) -> str:
        """Folder or hub id of the tokenizer."""
        return self.config.model.tokenizer_path or self.model_path

    @property
    def samples_per_question(self) -> int:
        """Trajectories of one question, over all arms."""
        return sum(arm.samples for arm in self.arms)


def resolve(config: RunConfig, policy: Policy | None = None) -> ResolvedRun:
    """Check the model and the adapters of a config, and resolve it.

    Args:
        config: The config of the run.
        policy: The weights that running engines hold; None reads the model of the config.

    Raises:
        ConfigError: The model or an adapter is missing, or an adapter does not fit the model.
    """
    model_path = model_folder(config.model.model_path)
    if config.engine.backend == "vllm" and not cluster_address(config):
        check_model_path(model_path)
    arms = resolve_arms(config)
    check_style(config, arms)
    check_adapters(config, arms, model_path)
    return ResolvedRun(
        config=config,
        arms=arms,
        model_path=model_path,
        policy=policy or policy_at(model_path),
        adapters=fingerprints(adapters_of(arms)),
        max_model_len=config.engine.max_model_len or default_max_model_len(config),
    )


def policy_at(model_path: str) -> Policy:
    """Return the weights that a folder or hub id holds now."""
    return Policy(model_path, model_fingerprint(model_path))


def check_adapters(config: RunConfig, arms: Sequence[Arm], model_path: str) -> None:
    """Raise ConfigError if an adapter is missing or does not fit the model.

    On a cluster, this machine may not see an adapter. An engine checks that one.
    """
    paths = adapters_of(arms)
    if paths and config.engine.backend != "vllm":
        raise ConfigError("the simulated engine has no adapters; leave lora_path unset")
    for path in paths:
        if os.path.isdir(path) or not cluster_address(config):
            check_adapter(path, model_path)
            if config.model.tokenizer_path is None and os.path.isdir(model_path):
                check_wording(path, model_path, template_given=config.model.chat_template is not None)
