"""Share what the benchmarks of one vLLM engine have in common: their prompts and their arguments."""

from __future__ import annotations

import argparse
from pathlib import Path


def token_prompt(number: int, length: int) -> list[int]:
    """Return the token ids of prompt `number`: `length` numbers from 100 to 1099, which go on from the prompt before."""
    return [100 + (number * length + place) % 1000 for place in range(length)]


def engine_parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with the arguments of every such benchmark. `doc` is the docstring of the module."""
    parser = argparse.ArgumentParser(
        prog=f"python -m rollout_ray.jobs.benchmark.{module}", description=(doc or "").splitlines()[0]
    )
    parser.add_argument("model", help="folder of a model")
    parser.add_argument("--load-format", default="auto", help="'dummy' fills a checkpoint's shape with random weights")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs of the engine; 0 runs on the CPU")
    parser.add_argument("--json", type=Path, help="file for all figures, written after every process")
    return parser
