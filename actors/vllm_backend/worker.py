"""Extend vLLM's worker: time its start, compile once a machine, take new weights, and keep log-probabilities.

vLLM looks the class up by its name (worker_cls), so it runs where the weights are: in the engine's process or in one
of vLLM's own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from vllm.platforms import current_platform
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import AsyncModelRunnerOutput, LogprobsTensors, ModelRunnerOutput
from vllm.v1.sample.sampler import Sampler

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as Base
else:
    from vllm.v1.worker.gpu_worker import Worker as Base

from rollout_ray.actors.vllm_backend.compile_lock import acquire_compile_lock
from rollout_ray.actors.vllm_backend.packed_weights import no_part_missing
from rollout_ray.actors.vllm_backend.token_log import KEY, TokenLog


class Worker(Base):  # type: ignore[misc, unused-ignore]
    """vLLM's worker on this platform."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._rollout_phases: dict[str, float] = {}
        self._rollout_tokens = TokenLog()
        super().__init__(*args, **kwargs)

    def rollout_phases(self) -> dict[str, float]:
        """Return the seconds of each phase of the start, in order."""
        return self._rollout_phases

    @contextmanager
    def _rollout_phase(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._rollout_phases[name] = self._rollout_phases.get(name, 0.0) + time.monotonic() - began

    def init_device(self, *args: Any, **kwargs: Any) -> Any:
        with self._rollout_phase("device"):
            return super().init_device(*args, **kwargs)

    def load_model(self, *args: Any, **kwargs: Any) -> Any:
        with self._rollout_phase("weights"), no_part_missing(self.model_config):
            super().load_model(*args, **kwargs)
        sampler = getattr(self.model_runner, "sampler", None)
        if isinstance(sampler, Sampler):  # another runner has one that ranks nothing if no rank is asked for
            sampler.gather_logprobs = _without_ranks(sampler.gather_logprobs)

    def determine_available_memory(self, *args: Any, **kwargs: Any) -> Any:
        with self._rollout_compile_once(), self._rollout_phase("compile"), self._rollout_one_triton_cache():
            return super().determine_available_memory(*args, **kwargs)

    def initialize_from_config(self, *args: Any, **kwargs: Any) -> Any:
        with self._rollout_phase("kv_cache"):
            return super().initialize_from_config(*args, **kwargs)

    def compile_or_warm_up_model(self, *args: Any, **kwargs: Any) -> Any:
        with self._rollout_phase("graphs"):
            return super().compile_or_warm_up_model(*args, **kwargs)

    def execute_model(self, scheduler_output: SchedulerOutput, *args: Any, **kwargs: Any) -> Any:
        for new in scheduler_output.scheduled_new_reqs:
            extra = new.sampling_params.extra_args if new.sampling_params else None
            if extra and KEY in extra and self.is_driver_worker:
                self._rollout_tokens.begin(new.req_id, extra[KEY])
        return self._rollout_recorded(super().execute_model(scheduler_output, *args, **kwargs))

    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        return self._rollout_recorded(super().sample_tokens(*args, **kwargs))

    def _rollout_recorded(self, output: Any) -> Any:
        """Keep the log-probabilities of a step here, in place of sending them with its output."""
        if isinstance(output, AsyncModelRunnerOutput):

            def get_output() -> ModelRunnerOutput:
                del output.get_output  # called once; a cycle of references would keep tensors on the GPU
                return self._rollout_record(output.get_output())

            output.get_output = get_output
            return output
        return self._rollout_record(output) if isinstance(output, ModelRunnerOutput) else output

    def _rollout_record(self, output: ModelRunnerOutput) -> ModelRunnerOutput:
        found = output.logprobs
        if found is not None:
            starts = found.cu_num_generated_tokens
            self._rollout_tokens.record(output.req_ids, output.sampled_token_ids, found.logprobs, starts)
            output.logprobs = None
        return output

    def rollout_take_tokens(self, numbers: Sequence[int]) -> list[tuple[bytes, bytes]]:
        """Return the sampled tokens of finished requests and their log-probabilities, and forget them.

        A worker that samples nothing returns an empty list.
        """
        return self._rollout_tokens.take(numbers) if self.is_driver_worker else []

    @contextmanager
    def _rollout_compile_once(self) -> Iterator[None]:
        """Let one engine of a machine compile this model's code, while the others wait and then load it.

        Ranks of one replica wait for each other in the model, so they do not wait here.
        """
        config = self.vllm_config
        if config.model_config.enforce_eager or config.parallel_config.world_size > 1 or current_platform.is_cpu():
            yield
            return
        from vllm import envs

        with self._rollout_phase("wait"):
            compile_lock = acquire_compile_lock(
                envs.VLLM_CACHE_ROOT, f"{current_platform.get_device_name()} {config.compute_hash()}"
            )
        with compile_lock:
            yield

    @contextmanager
    def _rollout_one_triton_cache(self) -> Iterator[None]:
        """Keep the Triton kernels of all starts in one folder.

        vLLM's first start keeps them with the graph that it compiles. A start that finds the graph looks elsewhere, and
        would compile the kernels again: 21 s on an H200.
        """
        from vllm import envs

        variable = "TRITON_CACHE_DIR"
        place = os.environ.get(variable) or os.path.join(envs.VLLM_CACHE_ROOT, "rollout_ray", "triton")
        yield
        os.environ[variable] = place

    def rollout_load_weights(self, path: str) -> None:
        """Load the checkpoint in the folder `path` into the present tensors, which compiled graphs use.

        Raises:
            RuntimeError: vLLM left out a tensor. The loaders of some models do so without a word.
        """
        parameters: dict[str, Any] = {}
        if not self.model_config.quantization:  # else the checkpoint need not have all of them
            named = self.model_runner.get_model().named_parameters()
            parameters = {name: one.data for name, one in named if one.numel() and one.is_floating_point()}
        for parameter in parameters.values():
            parameter.fill_(torch.nan)
        self.reload_weights(weights_path=path)
        if left := [name for name, one in parameters.items() if one[(0,) * one.ndim].isnan() and one.isnan().all()]:
            raise RuntimeError(
                f"vLLM left out {len(left)} of {len(parameters)} tensors of this model, such as {left[0]}; only a new "
                "start can change its weights"
            )
        if current_platform.is_cpu():
            self._rollout_pack_again()

    def _rollout_pack_again(self) -> None:
        """On the CPU a layer computes with a packed copy of its weight. vLLM packs again what it loads, but for

        - an output layer that shares the embedding's weight: no tensor of the checkpoint is its own;
        - experts, which it packs at the first load only;
        - the view of a convolution's weight that a Mamba layer took before it was packed.
        """
        for layer in self.model_runner.get_model().modules():
            weight = getattr(layer, "weight", None)
            if hasattr(layer, "cpu_linear") and weight is not None and weight.numel():
                layer.quant_method.process_weights_after_loading(layer)
            experts = getattr(getattr(getattr(layer, "quant_method", None), "moe_kernel", None), "fused_experts", None)
            if experts is not None and hasattr(layer, "w13_weight"):
                experts.process_weights_after_loading(layer)
            unpacked = getattr(getattr(layer, "conv1d", None), "_cpu_unpacked_conv_weight", None)
            if unpacked is not None and hasattr(layer, "conv_weights"):
                layer.conv_weights.copy_(unpacked)


def _without_ranks(gather: Callable[..., LogprobsTensors]) -> Callable[..., LogprobsTensors]:
    """Return vLLM's function, but for the rank of a sampled token: it reads every logit again, with code to compile."""

    def gather_logprobs(logprobs: torch.Tensor, num_logprobs: int, token_ids: torch.Tensor) -> LogprobsTensors:
        if num_logprobs:
            return gather(logprobs, num_logprobs, token_ids)
        sampled = token_ids.unsqueeze(-1)
        no_ranks = torch.zeros_like(token_ids, dtype=torch.int32)
        return LogprobsTensors(sampled.to(torch.int32), logprobs.gather(-1, sampled), no_ranks)

    return gather_logprobs
