"""A run is resolved once, and an engine gets one value that can be sent to it."""

from __future__ import annotations

import pickle
import re
from dataclasses import FrozenInstanceError, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from rollout_ray import RunConfig
from rollout_ray.actors.engine.engine import Engine
from rollout_ray.actors.engine.launch import LaunchSpec, forwarded_environment
from rollout_ray.actors.engine.out_of_memory import smaller
from rollout_ray.core.errors import ConfigError
from rollout_ray.models.checkpoints import Policy
from rollout_ray.models.paths import DEMO_FOLDER
from rollout_ray.models.resolved_run import resolve
from rollout_ray.sizing.hardware import CPU_SEQS, DEFAULT_BATCHED_TOKENS, DEFAULT_SEQS, EngineLimits, usual_limits

SIMULATED = {"engine": {"backend": "simulated"}, "arms": {"arm_set": "greedy"}}


def config(**sections: Any) -> RunConfig:
    return RunConfig.model_validate(sections)


def test_names_and_defaults_of_the_config_are_resolved() -> None:
    run = resolve(config(sampling={"n_samples": 3}))
    assert run.model_path == run.tokenizer_path == run.policy.path == DEMO_FOLDER
    assert len(run.arms) == 8 and {arm.samples for arm in run.arms} == {3} and run.samples_per_question == 24
    assert run.max_model_len == 2048 and resolve(config(engine={"max_model_len": 512})).max_model_len == 512
    assert run.policy.version == 0 and run.policy.fingerprint != DEMO_FOLDER and run.adapters == {}


def test_a_resolved_run_does_not_change() -> None:
    run = resolve(config())
    with pytest.raises(FrozenInstanceError):
        run.model_path = "other"  # type: ignore[misc]


def test_the_identity_follows_the_weights_that_engines_hold() -> None:
    run = resolve(config())
    held = resolve(config(), Policy("/checkpoints/step-1", "of step 1", 1))
    assert run.identity == {**run.config.identity(), "model.fingerprint": run.policy.fingerprint}
    assert held.identity == {**run.identity, "model.fingerprint": "of step 1"}


def test_a_model_that_is_not_there_is_refused_at_the_door() -> None:
    with pytest.raises(ConfigError, match="model_path /nowhere/model is no folder"):
        resolve(config(model={"model_path": "/nowhere/model"}))


def test_an_engine_that_was_sent_its_spec_starts_with_it() -> None:
    spec = LaunchSpec.of(resolve(config(**SIMULATED)), gpus=0, threads=1, name="engine-7")
    sent = pickle.loads(pickle.dumps(spec))
    assert sent == spec
    engine = Engine(sent)
    assert engine.start().max_num_seqs == spec.limits.max_num_seqs == CPU_SEQS
    engine.begin(sent.run)


@pytest.mark.parametrize(("gpus", "seqs", "tokens"), [(0, CPU_SEQS, None), (1, DEFAULT_SEQS, DEFAULT_BATCHED_TOKENS)])
def test_limits_are_the_config_s_or_the_usual_ones(gpus: int, seqs: int, tokens: int | None) -> None:
    assert usual_limits(config().engine, gpus) == EngineLimits(seqs, tokens, 0.9, None)
    engine = config(engine={"max_num_seqs": 8, "max_num_batched_tokens": 64, "kv_cache_gib": 1}).engine
    assert usual_limits(engine, gpus) == EngineLimits(8, 64, 0.9, 1.0)


def test_each_step_down_halves_the_batch_and_leaves_some_of_the_memory() -> None:
    limits = EngineLimits(8, 1024, 0.9, 4.0)
    assert smaller(limits, 2, keep_share=True) == replace(limits, max_num_seqs=2, max_num_batched_tokens=256)
    assert smaller(limits, 2, keep_share=False) == EngineLimits(2, 256, round(0.9 * 0.75**2, 3), 1.0)
    assert smaller(EngineLimits(1, None, 0.9), 3, keep_share=True) == EngineLimits(1, None, 0.9)


@pytest.mark.usefixtures("long_computation")
def test_new_weights_keep_the_tokenizer_and_the_config_of_the_first_model(tmp_path: Path) -> None:
    from rollout_ray.actors.vllm_backend.arguments import engine_arguments

    run = replace(resolve(config()), policy=Policy(str(tmp_path), "other", 1))
    arguments = engine_arguments(LaunchSpec.of(run, gpus=0, threads=1))
    assert arguments["model"] == str(tmp_path)
    assert arguments["tokenizer"] == arguments["hf_config_path"] == DEMO_FOLDER


def test_an_engine_gets_the_driver_s_variables_but_for_those_of_one_host() -> None:
    settings = {
        "VLLM_CACHE_ROOT": "/shared/vllm",
        "VLLM_LOGGING_LEVEL": "INFO",
        "VLLM_ALLREDUCE_USE_SYMM_MEM": "0",
        "NCCL_NVLS_ENABLE": "0",
        "NCCL_SOCKET_IFNAME": "eth0",
        "HF_HOME": "/shared/hub",
    }
    of_the_driver = ("VLLM_HOST_IP", "VLLM_LOOPBACK_IP", "VLLM_PORT", "VLLM_RPC_BASE_PATH", "VLLM_DP_RANK", "VLLM_DP_SIZE")
    of_the_driver += ("VLLM_DP_MASTER_IP", "VLLM_DP_MASTER_PORT", "VLLM_NIXL_SIDE_CHANNEL_HOST", "VLLM_RAY_BUNDLE_INDICES")
    of_the_driver += ("VLLM_GPU_NIC_PCIE_MAPPING", "NCCL_HOSTID", "PATH", "HOME")
    secret = {"HF_HUB_TOKEN": "hf_abcdefghijklmnopqrstuvwxyzabcdefgh"}
    assert forwarded_environment(settings | dict.fromkeys(of_the_driver, "1") | secret) == settings


def test_no_variable_of_this_vllm_with_an_address_goes_to_engines() -> None:
    names = Path(find_spec("vllm").origin or "").with_name("envs.py").read_text()  # type: ignore[union-attr]
    found = set(re.findall(r'^ +"(VLLM_\w+)":', names, re.MULTILINE))
    left = {name for name in forwarded_environment(dict.fromkeys(found, "1")) if re.search("HOST|_IPS?$|PORT$", name)}
    assert "VLLM_HOST_IP" in found and len(found) > 100 and left == set()
