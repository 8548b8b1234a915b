"""Compare the config of a run with the config of its pool."""

from __future__ import annotations

import logging
from typing import Any

from rollout_ray.config.arms import default_max_model_len
from rollout_ray.config.schema import RunConfig

log = logging.getLogger(__name__)


def engine_fields(cfg: RunConfig) -> dict[str, Any]:
    """Return the fields that decide an engine, by their dotted names."""
    model = cfg.model.model_dump(mode="json", exclude={"lora_path", "chat_template_kwargs"})
    engine = cfg.engine.model_dump(mode="json")
    engine["max_model_len"] = cfg.engine.max_model_len or default_max_model_len(cfg)
    output = {f"output.{k}": v for k, v in cfg.output.model_dump(include={"tokens", "logprobs"}).items()}
    return {**{f"model.{k}": v for k, v in model.items()}, **{f"engine.{k}": v for k, v in engine.items()}, **output}


def warn_of_replicas(pool: RunConfig, run: RunConfig) -> None:
    """Warn of a run that asks for another number of engines than its pool."""
    ours, theirs = pool.resources.replicas, run.resources.replicas
    if theirs is not None and theirs != ours:
        log.warning(
            "resources.replicas is %d in the run and %s in the pool. The run uses the engines of the pool. To change their "
            "number, open another pool",
            theirs,
            "unset" if ours is None else ours,
        )
