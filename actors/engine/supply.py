"""Decide how many samples an engine submits to its backend, so that a freed place in the batch never waits."""

from __future__ import annotations

from rollout_ray.actors.backend import BackendInfo


def batch_share(max_num_seqs: int) -> int:
    """Return an eighth of a batch: the supply ahead of the backend, and the least that is worth a hand-over."""
    return max(1, max_num_seqs // 8)


def num_to_submit(info: BackendInfo, held: int, waiting: int, short: bool) -> int:
    """Return how many samples to submit next.

    A backend in this process gets a full batch and an eighth more, and no more than an eighth between two steps: a step
    waits for all that is submitted. A core in its own process hears of freed places steps later, so it is kept a full
    batch ahead. A backend that is short of KV cache is kept an eighth ahead of what it decodes.

    Args:
        info: What the backend chose at its start.
        held: Samples that the backend has.
        waiting: Those of them that it does not decode yet.
        short: Whether it is short of KV cache.
    """
    few = batch_share(info.max_num_seqs)
    ahead = info.max_num_seqs if info.core_apart and not short else few
    free = max(0, ahead - waiting if short else info.max_num_seqs + ahead - held)
    return free if info.core_apart else min(free, few)
