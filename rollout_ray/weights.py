"""How engines get the weights of a policy: in their config where they start, in place where they run.

Owns neither the choice of a policy (pool.py) nor what becomes of an engine that cannot load it (fleet.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import ray

from rollout_ray.checkpoints import Policy
from rollout_ray.config import RunConfig
from rollout_ray.models import model_folder
from rollout_ray.slots import Slot


def holding(cfg: RunConfig, policy: Policy) -> RunConfig:
    """The config of an engine that starts with these weights; tokenizer, config and defaults stay the first model's, as
    in engines whose weights were updated."""
    if not policy.version:
        return cfg
    first = model_folder(cfg.model.model_path)
    model = {"model_path": policy.path, "tokenizer_path": cfg.model.tokenizer_path or first}
    extra = {"hf_config_path": first, **cfg.engine.extra}
    return cfg.model_copy(
        update={
            "model": cfg.model.model_copy(update=model),
            "engine": cfg.engine.model_copy(update={"extra": extra}),
        }
    )


def load_weights(slots: Sequence[Slot], policy: Policy, timeout_s: float) -> tuple[int, list[tuple[Slot, Exception]]]:
    """Has all engines load the weights at once, those that still start once they have. Returns how many hold them now, and
    the others with what each raised; one that takes longer than `timeout_s` is among those."""
    starts = [slot.call[0] for slot in slots if not slot.started and slot.call]
    if starts:
        ray.wait(starts, num_returns=len(starts))
    calls = {slot.actor.update_weights.remote(policy): slot for slot in slots if slot.actor is not None}
    if calls:
        ray.wait(list(calls), num_returns=len(calls), timeout=timeout_s)
    failed: list[tuple[Slot, Exception]] = []
    for call, slot in calls.items():
        try:
            ray.get(call, timeout=0)
        except ray.exceptions.RayError as error:
            failed.append((slot, error.cause if isinstance(error, ray.exceptions.RayTaskError) else error))
    return len(calls) - len(failed), failed
