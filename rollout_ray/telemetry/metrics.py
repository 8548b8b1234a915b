"""Export the figures of a run on Ray's Prometheus endpoint.

cluster/grafana.json uses the names. A failure is logged once and switches the metrics off; the run continues.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import Any

from rollout_ray.telemetry.run_view import RunView

log = logging.getLogger(__name__)

INTERVAL_S = 2.0
# Name -> tag beside `run`, meaning. Ray adds the prefix ray_, and _total to counters. Ray exports a counter only after
# its first count, so a figure that may stay zero is a gauge.
GAUGES = {
    "rollout_questions": (None, "Questions of the run"),
    "rollout_questions_saved": (None, "Questions whose trajectories are all scored and saved"),
    "rollout_queued_draws": (None, "Samples that no engine has yet"),
    "rollout_unscored_draws": (None, "Samples that wait for a scorer"),
    "rollout_restarts": (None, "Engines started again so far"),
    "rollout_engine_in_flight_draws": ("engine", "Samples that an engine holds"),
    "rollout_engine_running": ("engine", "Sequences that an engine decodes"),
    "rollout_engine_waiting": ("engine", "Samples that an engine holds and does not decode yet"),
    "rollout_engine_tokens_per_second": ("engine", "Output tokens per second, over some seconds"),
    "rollout_engine_kv_cache_use": ("engine", "Share of the KV cache in use"),
    "rollout_engine_cache_hit_rate": ("engine", "Share of the prompt tokens found in the prefix cache"),
    "rollout_engine_preemptions": ("engine", "Sequences preempted so far for lack of KV cache"),
    "rollout_arm_accuracy": ("arm", "Share of the graded trajectories that are correct"),
    "rollout_arm_reward": ("arm", "Mean reward"),
    "rollout_arm_tokens": ("arm", "Mean output length in tokens"),
}
COUNTERS = {
    "rollout_trajectories": (None, "Trajectories generated"),
    "rollout_engine_tokens": ("engine", "Output tokens"),
    "rollout_score_status": ("status", "Trajectories by score status"),
}


class RunMetrics:
    """The metrics of the run with the name `run`."""

    def __init__(self, run: str) -> None:
        self._tags = {"run": run.encode("ascii", "backslashreplace").decode()}  # Ray refuses any other letter
        self._metrics: dict[str, Any] = {}
        self._counted: Counter[tuple[str, str]] = Counter()
        self._next = 0.0

    def update(self, view: RunView, *, last: bool = False) -> None:
        """Set the metrics from `view`, at most every INTERVAL_S. The `last` update is immediate."""
        now = time.monotonic()
        if now < self._next and not (last and self._next < float("inf")):
            return
        self._next = now + INTERVAL_S
        try:
            self._update(view)
        except Exception as error:  # noqa: BLE001 - no error of the metrics may stop the run
            log.warning("metrics are off for the rest of the run: %s: %s", type(error).__name__, error)
            self._next = float("inf")

    def _update(self, view: RunView) -> None:
        if not self._metrics:
            self._register()
        self._set("rollout_questions", view.total)
        self._set("rollout_questions_saved", view.before + view.committed)
        self._set("rollout_queued_draws", view.pending)
        self._set("rollout_unscored_draws", view.unscored)
        self._count("rollout_trajectories", view.ended_samples)
        self._set("rollout_restarts", view.restarts)
        for name, engine in view.engines.items():
            stats = engine.stats
            self._set("rollout_engine_in_flight_draws", engine.unfinished, name)
            self._set("rollout_engine_running", stats.running, name)
            self._set("rollout_engine_waiting", stats.waiting, name)
            self._set("rollout_engine_tokens_per_second", engine.rate, name)
            self._set("rollout_engine_kv_cache_use", stats.kv_use, name)
            self._set("rollout_engine_cache_hit_rate", stats.cache_hit_rate, name)
            self._count("rollout_engine_tokens", stats.generated_tokens, name)
            self._set("rollout_engine_preemptions", stats.preemptions, name)
        for name, arm in view.summary.arms.items():
            self._set("rollout_arm_accuracy", arm.accuracy, name)
            self._set("rollout_arm_reward", arm.mean_reward, name)
            self._set("rollout_arm_tokens", arm.mean_tokens, name)
        for name, count in view.summary.score_status.items():
            self._count("rollout_score_status", count, name)

    def _register(self) -> None:
        from ray.util import metrics

        for kind, names in ((metrics.Gauge, GAUGES), (metrics.Counter, COUNTERS)):
            for name, (tag, meaning) in names.items():
                metric = kind(name, description=meaning, tag_keys=("run", tag) if tag else ("run",))
                metric.set_default_tags(self._tags)
                self._metrics[name] = metric

    def _set(self, name: str, value: float | None, label: str = "") -> None:
        if value is not None:
            self._metrics[name].set(value, self._label(name, GAUGES, label))

    def _count(self, name: str, total: int, label: str = "") -> None:
        """Raise a counter to `total`. Samples that are lost with an engine and repeated count twice, as work."""
        if (more := total - self._counted[name, label]) > 0:
            self._metrics[name].inc(more, self._label(name, COUNTERS, label))
            self._counted[name, label] = total

    @staticmethod
    def _label(name: str, names: dict[str, tuple[str | None, str]], label: str) -> dict[str, str] | None:
        tag = names[name][0]
        return {tag: label} if tag else None
