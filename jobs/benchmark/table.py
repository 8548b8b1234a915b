"""Format the table for people: medians of the repeats, and ratios to bare vLLM in the same repeat."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from rich.table import Table

Figures = dict[str, Any]


def figures_table(runs: dict[str, list[Figures]], workload: dict[str, Any]) -> Table:
    """Return one row a system.

    A system with a share of the questions says so in its name and has no ratio of totals.
    """
    questions, arms = workload["questions"], workload["arms"]
    table = Table(
        title=f"{questions} questions x {arms} arms = {questions * arms} trajectories of {workload['tokens']} tokens, "
        f"{_engines(workload)}; seconds, median of {max(map(len, runs.values()))}",
        caption="tok/s: output tokens a second of generation. GPU %: mean busy time in generation / from start to file.",
    )
    for heading in ("system", "start", "generation", "total", "tok/s", "tok/s / bare", "total / bare", "GPU %"):
        table.add_column(heading, justify="left" if heading == "system" else "right")
    for name, repeats in runs.items():
        done = [figures for figures in repeats if "failed" not in figures]
        part = bool(done) and done[0]["trajectories"] < questions * arms
        label = f"{name} ({done[0]['trajectories'] // arms} of {questions} questions)" if part else name
        if len(done) < len(repeats):
            label += f" ({len(repeats) - len(done)} of {len(repeats)} failed)"
        bare = runs.get("bare", [])
        speeds = _ratios(repeats, bare, "tokens_per_second")
        totals = [] if part else _ratios(repeats, bare, "total")
        table.add_row(
            label,
            _start(done),
            _median(done, lambda f: f["generation"]),
            _median(done, lambda f: f["total"]),
            _median(done, lambda f: f["tokens_per_second"], ",.0f"),
            f"{statistics.median(speeds):.2f}" if speeds else "-",
            f"{statistics.median(totals):.2f} ({min(totals):.2f} to {max(totals):.2f})" if totals else "-",
            f"{_median(done, _busy('gpu_generation'), '.0f')} / {_median(done, _busy('gpu_run'), '.0f')}",
        )
    return table


def _engines(workload: dict[str, Any]) -> str:
    gpus, replicas = workload["gpus"], workload["replicas"]
    return f"{replicas} engine(s) of {gpus} GPU(s)" if gpus else f"{replicas} engine(s) on the CPU"


def _start(done: Sequence[Figures]) -> str:
    """Return the seconds until the first engine, and until the last one if they differ."""
    first, last = _median(done, lambda f: f["start"]), _median(done, lambda f: f["start_last"])
    return first if first == last else f"{first} to {last}"


def _busy(key: str) -> Callable[[Figures], float | None]:
    return lambda figures: statistics.mean(figures[key]) if figures[key] else None


def _median(done: Sequence[Figures], value: Callable[[Figures], float | None], form: str = ".1f") -> str:
    values = [v for v in map(value, done) if v is not None]
    return f"{statistics.median(values):{form}}" if values else "-"


def _ratios(repeats: Sequence[Figures], bare: Sequence[Figures], key: str) -> list[float]:
    return [
        ours[key] / theirs[key]
        for ours, theirs in zip(repeats, bare, strict=False)
        if "failed" not in ours and "failed" not in theirs
    ]
