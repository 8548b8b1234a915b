"""vLLM as a Backend: one replica on the CPU, on one GPU, or over several GPUs of one node.

It starts vLLM's engine and passes requests on. arguments.py chooses how the engine starts, sampling.py how it samples.
It uses only names that vLLM 0.26 to 0.33 share.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rollout_ray.actors.backend import BackendInfo, Finished
from rollout_ray.actors.engine.launch import LaunchSpec
from rollout_ray.actors.vllm_backend.architecture import register_classes
from rollout_ray.actors.vllm_backend.arguments import WORKER, engine_arguments, environment, has_own_process
from rollout_ray.actors.vllm_backend.core_process import end_cores_with_this_process
from rollout_ray.actors.vllm_backend.detokenizer import Output, TextDecoder
from rollout_ray.actors.vllm_backend.finished_tokens import FinishedTokens
from rollout_ray.actors.vllm_backend.imports import uncollected
from rollout_ray.actors.vllm_backend.page_cache import read_ahead
from rollout_ray.actors.vllm_backend.sampling import arm_parameters, refusals
from rollout_ray.actors.vllm_backend.stats import VllmStats
from rollout_ray.core.errors import ConfigError, Refused
from rollout_ray.core.records import Arm, Prompt, SampleSpec
from rollout_ray.models import adapters
from rollout_ray.models.model_check import check_where_unseen
from rollout_ray.models.prompt_encoder import PromptEncoder
from rollout_ray.models.prompt_report import PromptReport, report_prompts
from rollout_ray.models.resolved_run import ResolvedRun
from rollout_ray.models.special_tokens import read_by_grading, showing
from rollout_ray.telemetry.engine_stats import EngineStats

log = logging.getLogger(__name__)


# With these sampling parameters, the same tokens give another text.
TEXT_PARAMETERS = frozenset(("include_stop_str_in_output", "skip_special_tokens", "spaces_between_special_tokens"))
_ATTEMPT = "attempt"  # key of a request
RESET_S = 30.0  # longest time to empty the prefix cache after an update of the weights


class VllmBackend:
    """One vLLM replica. Construct it in the process that holds it: the constructor imports vLLM."""

    def __init__(self, spec: LaunchSpec) -> None:
        self._run = spec.run
        _enter(spec.run.folder)
        check_where_unseen(spec.run)
        os.environ.update(environment(spec.run, gpus=spec.gpus, threads=spec.threads))
        if spec.run.config.engine.load_format != "dummy":
            read_ahead(spec.run.policy.path)
        began = time.perf_counter()
        self._import_vllm()
        if has_own_process(spec.gpus) and sys.platform == "linux":
            end_cores_with_this_process()
        imported = time.perf_counter()
        register_classes(spec.run)
        arguments = engine_arguments(spec)
        configured = time.perf_counter()
        self._start(arguments)
        self._served: dict[tuple[str, str], Any] = {}  # path and fingerprint of an adapter -> LoRARequest
        self._loras: dict[str, Any] = {}  # the same by path alone
        self._last_lora = 0
        self._parameters: dict[str, dict[str, Any]] = {}  # of each arm
        self._vllm_decodes = True
        self._tokens = FinishedTokens(self._engine.collective_rpc)
        self._info = BackendInfo(
            max_num_seqs=arguments["max_num_seqs"],
            core_apart=has_own_process(spec.gpus),
            import_seconds=imported - began,
            load_seconds=time.perf_counter() - imported,
            phases={"import": imported - began, "config": configured - imported, **self._worker_phases(arguments)},
            settings={k: v for k, v in arguments.items() if isinstance(v, (bool, int, float, str))}
            | {"max_model_len": self._max_model_len},
        )

    def _import_vllm(self) -> None:
        """Import vLLM, and keep its classes that requests are made of."""
        with uncollected():
            from vllm import SamplingParams
            from vllm.lora.request import LoRARequest
            from vllm.v1.engine.llm_engine import LLMEngine  # noqa: F401 - imported here, where the time is counted
        self._lora_request = LoRARequest
        self._sampling_params, self._refusals = SamplingParams, refusals()

    def _start(self, arguments: dict[str, Any]) -> None:
        """Start vLLM's engine, and the encoder and decoder beside it."""
        from vllm.engine.arg_utils import EngineArgs
        from vllm.envs import enable_envs_cache
        from vllm.v1.engine.llm_engine import LLMEngine

        self._stats = VllmStats(arguments["max_num_seqs"])
        self._engine = LLMEngine.from_engine_args(EngineArgs(**arguments), stat_loggers=self._stats.loggers())
        # Other threads encode prompts and decode texts. Python would let each keep the engine waiting for 5 ms.
        # Set after the start: the processes that vLLM has forked keep Python's default.
        sys.setswitchinterval(0.001)
        enable_envs_cache()  # vLLM reads a variable with every token that it counts
        self._max_model_len: int = self._engine.vllm_config.model_config.max_model_len
        self._processes = multiprocessing.active_children()
        tokenizer = self._engine.get_tokenizer()
        self._encoder = PromptEncoder.of(self._run, tokenizer, self._max_model_len)
        fast = getattr(tokenizer, "backend_tokenizer", None)
        if fast is not None and (shown := read_by_grading(self._encoder.hidden)):
            fast = showing(fast, shown)
            tokenizer._tokenizer = fast  # vLLM decodes with this one if a run has stop strings
        self._decoder = TextDecoder(fast) if fast is not None else None

    def info(self) -> BackendInfo:
        return self._info

    def _worker_phases(self, arguments: Mapping[str, Any]) -> dict[str, float]:
        """Return the seconds of each phase of vLLM's start, of the slowest worker in each."""
        if arguments["worker_cls"] != WORKER:
            return {}
        workers: list[dict[str, float]] = self._engine.collective_rpc("rollout_phases")
        return {name: max(worker.get(name, 0.0) for worker in workers) for name in workers[0]}

    def check(self) -> None:
        """Raise RuntimeError if a process of the engine has ended. vLLM waits for a killed one for ever."""
        for process in self._processes:
            if not process.is_alive():
                raise RuntimeError(f"vLLM's process {process.name} ended with exit code {process.exitcode}")

    def stats(self) -> EngineStats:
        return self._stats.stats

    def begin(self, run: ResolvedRun) -> PromptReport:
        """Take up the arms of a run, and say how its prompts are worded.

        Raises:
            ConfigError: vLLM cannot load an adapter or refuses a sampling parameter, the chat template does not read a
                variable of an arm, or the prompts seem to be rendered already.
        """
        _enter(run.folder)
        arms, sampling = run.arms, run.config.sampling
        self._tokens.begin(run.config.output.tokens)
        self._encoder.begin(run)
        hidden = self._encoder.hidden
        self._parameters = {arm.name: arm_parameters(arm, sampling, hidden, self._attempt) for arm in arms}
        report = report_prompts(self._encoder, run)
        # vLLM finds stop strings in the text that it decodes itself, and has its own way with special tokens.
        changed = any(arm.extra_sampling.keys() & TEXT_PARAMETERS for arm in arms)
        finds_strings = any(parameters["stop"] for parameters in self._parameters.values())
        self._vllm_decodes = self._decoder is None or changed or finds_strings
        wanted = set(adapters.fingerprints(adapters.adapters_of(arms)).items())
        for gone in self._served.keys() - wanted:
            self._engine.remove_lora(self._served.pop(gone).lora_int_id)
        for path, fingerprint in sorted(wanted - self._served.keys()):
            # vLLM knows an adapter, and its cached prefixes, by id and name, so other content gets new ones.
            self._last_lora += 1
            request = self._lora_request(f"adapter-{self._last_lora}", self._last_lora, os.path.abspath(path))
            try:
                self._engine.add_lora(request)
            except Exception as error:
                self.check()
                raise ConfigError(f"vLLM cannot serve the adapter {path}: {error}; merge it into the model") from error
            self._served[path, fingerprint] = request
        self._loras = {path: request for (path, _), request in self._served.items()}
        return report

    def _attempt(self, parameters: Mapping[str, Any]) -> None:
        """Give vLLM a request that it never decodes. Raises what vLLM raises about its parameters."""
        wanted = self._sampling_params(**{"max_tokens": self._max_model_len - 1, **parameters})
        self._engine.add_request(_ATTEMPT, {"prompt_token_ids": [0]}, wanted)
        self._engine.abort_request([_ATTEMPT])

    def update_weights(self, path: str) -> None:
        """Load the checkpoint in the folder `path`. It has the shape of the present one."""
        self._engine.collective_rpc("rollout_load_weights", args=(path,))
        deadline = time.monotonic() + RESET_S
        while not self._engine.reset_prefix_cache():  # aborted requests may hold their blocks a moment longer
            if time.monotonic() > deadline:
                raise RuntimeError(f"vLLM's prefix cache could not be emptied within {RESET_S:g} s")
            time.sleep(0.05)

    def encode(self, prompt: Prompt, arm: Arm) -> list[int]:
        """Return the tokens of the prompt, as PromptEncoder makes them."""
        return self._encoder.encode(prompt, arm)

    def opening(self, arm: Arm) -> str:
        """Return the tag of a thought that the prompt begins, as PromptEncoder finds it."""
        return self._encoder.opening(arm)

    def add(self, key: str, tokens: list[int], spec: SampleSpec, seed: int) -> None:
        """Queue one request. Raises Refused if vLLM rejects it."""
        arm = spec.arm
        parameters = self._parameters[arm.name] | {
            "max_tokens": min(arm.max_tokens, self._max_model_len - len(tokens)),
            "seed": seed if arm.temperature > 0 else None,
            "detokenize": self._vllm_decodes,
        }
        parameters |= self._tokens.parameters(key, parameters)
        lora = self._loras[arm.lora_path] if arm.lora_path else None
        try:
            self._engine.add_request(
                key, {"prompt_token_ids": tokens}, self._sampling_params(**parameters), lora_request=lora
            )
        except self._refusals as error:
            self._tokens.drop([key])
            raise Refused(f"vLLM refused the request: {error}") from error

    def step(self) -> list[Finished]:
        """Decode one step, and return the requests that it finished."""
        ended = [output for output in self._engine.step() if output.finished]
        self._stats.finished(ended)
        return self._tokens.given([_finished(output, self._vllm_decodes) for output in ended], ended)

    def read(self, finished: Sequence[Finished]) -> list[Finished]:
        """Detokenize the outputs that vLLM did not.

        This runs beside the steps: a thousand outputs that end together would hold up the engine.
        """
        if self._decoder is None:
            return list(finished)
        texts = iter(self._decoder.texts([one.unread for one in finished if one.unread]))
        return [replace(one, text=next(texts), unread=None) if one.unread else one for one in finished]

    def abort(self, keys: Sequence[str]) -> None:
        self._tokens.drop(keys)
        self._engine.abort_request(list(keys))

    def close(self) -> None:
        """End the processes of the engine, if it has some."""
        shutdown = getattr(self._engine.engine_core, "shutdown", None)
        if shutdown:
            shutdown()


def _enter(folder: str) -> None:
    """Work in the folder of a run's driver, so that its relative paths mean the same here. Ray's head may be elsewhere."""
    if os.path.isdir(folder):
        os.chdir(folder)


def _tokens_of(output: Any) -> Output:
    completion = output.outputs[0]
    return Output(output.prompt_token_ids, completion.token_ids, stopped=completion.finish_reason == "stop")


def _finished(output: Any, decoded: bool) -> Finished:
    completion = output.outputs[0]
    reason = completion.finish_reason
    regular = reason in ("stop", "length")
    return Finished(
        key=output.request_id,
        text=completion.text if decoded else "",
        num_tokens=len(completion.token_ids),
        finish_reason=reason if regular else "error",
        error=None if regular else f"vLLM ended the request: {reason}",
        unread=None if decoded else _tokens_of(output),
    )
