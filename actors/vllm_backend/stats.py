"""Count vLLM's work from its own statistics, or from finished outputs if those are missing.

vLLM does not promise to keep the names in its statistics. A missing name never fails an engine.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from rollout_ray.telemetry.engine_stats import EngineStats

log = logging.getLogger(__name__)


class VllmStats:
    """Adds up the work of one vLLM engine.

    The engine's thread calls `record` and `finished`. Other threads may read `stats`.
    """

    def __init__(self, max_num_seqs: int) -> None:
        self.stats = EngineStats()
        self._max_num_seqs = max_num_seqs
        self._recorded = False  # whether the stat logger works; else finished outputs are counted

    def loggers(self) -> list[Any] | None:
        """Return vLLM's `stat_loggers` argument; None if this vLLM has none.

        The logger replaces vLLM's own one for Prometheus, which costs more.
        """
        try:
            from vllm.v1.metrics.loggers import PrometheusStatLogger
        except ImportError:
            return None
        record = self.record

        class Logger(PrometheusStatLogger):  # type: ignore[misc]
            def __init__(self, vllm_config: Any, engine_indexes: Any = None) -> None:
                """Register no metric."""

            def record(self, scheduler_stats: Any, iteration_stats: Any, *args: Any, **kwargs: Any) -> None:
                record(scheduler_stats, iteration_stats)

            def log_engine_initialized(self) -> None:
                """Announce nothing."""

            def record_sleep_state(self, *args: Any, **kwargs: Any) -> None:
                """Record nothing: our engines do not sleep."""

        return [Logger]

    def record(self, scheduler: Any, iteration: Any) -> None:
        """Count one step, from vLLM's SchedulerStats and IterationStats."""
        stats = self.stats
        try:
            running, waiting = scheduler.num_running_reqs, scheduler.num_waiting_reqs
            use = scheduler.kv_cache_usage
            if iteration is not None:
                prompts = iteration.prompt_token_stats
                counted = (iteration.num_generation_tokens, prompts.total, prompts.cached_tokens)
                preempted = iteration.num_preempted_reqs
            else:
                counted, preempted = (0, 0, 0), 0
        except AttributeError as error:
            if self._recorded:
                log.warning("vLLM's statistics lack a field; only finished outputs are counted: %s", error)
            self._recorded = False
            return
        self._recorded = True
        stats.running, stats.waiting = running, waiting
        stats.kv_use = float(use)
        stats.generated_tokens += counted[0]
        stats.prompt_tokens += counted[1]
        stats.cached_tokens += counted[2]
        stats.preemptions += preempted
        stats.kv_bound_steps += stats.short_of_memory and running < self._max_num_seqs

    def finished(self, outputs: Sequence[Any]) -> None:
        """Count finished RequestOutputs, if vLLM's own statistics are missing."""
        if self._recorded:
            return
        for output in outputs:
            self.stats.generated_tokens += len(output.outputs[0].token_ids)
            self.stats.prompt_tokens += len(output.prompt_token_ids or ())
            self.stats.cached_tokens += getattr(output, "num_cached_tokens", None) or 0
